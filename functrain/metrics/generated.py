"""How good generated examples are, by what a trained classifier says of them."""

from typing import Any, ClassVar

import numpy as np
from flax import struct

from functrain.metrics.rows import Rows

_AMONG = 1000
"""Generated examples in which classes are looked for."""
_CONFIDENT = 0.9


@struct.dataclass
class Generated(Rows):
    """Features of real and of generated examples, and the classifier's probabilities of the generated ones.

    fid               the Frechet distance of two normal distributions with the mean and covariance of the features:
                      |m - m'|^2 + trace(C + C' - 2 (C C')^(1/2)) (Heusel et al. 2017, eq. 6)
    inception_score   exp of the mean KL(p(y|x) || p(y)), of all rows at once (Salimans et al. 2016, section 4)
    classes           how many classes the first 1,000 generated examples are taken for
    confident         the share of which one class has a probability of at least 0.9

    They are numbers of this classifier and its features alone: those of two networks do not compare.

    >>> features = np.eye(4)
    >>> found = Generated(features, features + 1, np.full((4, 2), 0.5), mask=np.ones(4)).numbers()
    >>> round(float(found["fid"]), 6), float(found["inception_score"]), int(found["classes"])
    (4.0, 1.0, 1)
    """

    own: ClassVar[str] = "generated"
    parts: ClassVar[tuple[str, ...]] = ("fid", "inception_score", "classes", "confident")

    real: Any
    generated: Any
    probabilities: Any
    mask: Any

    def numbers(self) -> dict[str, Any]:
        """See the class."""
        p = np.asarray(self.probabilities, np.float64)
        real, generated = (np.asarray(x, np.float64) for x in (self.real, self.generated))
        if len(p) < 2 or not all(np.isfinite(x).all() for x in (p, real, generated)):
            return dict.fromkeys(self.parts, np.float64(np.nan))
        with np.errstate(divide="ignore", invalid="ignore"):
            terms = np.where(p > 0, p * np.log(p / p.mean(0)), 0)
        return {
            "fid": frechet_distance(real, generated),
            "inception_score": np.exp(terms.sum(-1).mean()),
            "classes": np.float64(len(np.unique(p[:_AMONG].argmax(-1)))),
            "confident": (p.max(-1) >= _CONFIDENT).mean(),
        }


def frechet_distance(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """|mean difference|^2 + trace(A + B - 2 (A B)^(1/2)), A and B being the covariances of the rows of a and b.

    Covariances are over n - 1. The trace of the root is the sum of the singular values of A^(1/2) B^(1/2), which no
    rounding makes complex.

    a, b: [rows, features], of at least two rows.
    """
    means = a.mean(0) - b.mean(0)
    roots = [_root(np.atleast_2d(np.cov(x, rowvar=False))) for x in (a, b)]
    traces = sum(np.square(root).sum() for root in roots)
    return np.asarray(means @ means + traces - 2 * np.linalg.svd(roots[0] @ roots[1], compute_uv=False).sum())


def _root(matrix):
    """The symmetric root of a covariance."""
    values, vectors = np.linalg.eigh(matrix)
    return (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
