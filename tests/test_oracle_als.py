"""Implicit alternating least squares against the library `implicit`, from equal factors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from functrain import als

library = pytest.importorskip("implicit.als", reason="implicit is not installed: pip install 'functrain[oracle]'")
from scipy.sparse import csr_matrix  # noqa: E402

pytestmark = [
    pytest.mark.oracle,
    pytest.mark.usefixtures("float64"),
    pytest.mark.filterwarnings("ignore:OpenBLAS is configured"),
]


def test_sweeps_equal_implicits():
    """Both sides after each of five sweeps, by its exact solver in float64."""
    rng = np.random.default_rng(0)
    shape = (200, 150)
    confidence = np.where(rng.random(shape) < rng.uniform(0, 0.3, (200, 1)), 1 + rng.exponential(4, shape), 0)
    confidence = confidence.astype(np.float32)  # which it keeps them in
    confidence[:2] = 0
    rows, columns = np.nonzero(confidence)
    values = confidence[rows, columns]
    params = {name: rng.normal(0, 0.1, (n, 16)) for name, n in zip(("users", "items"), shape)}
    theirs = library.AlternatingLeastSquares(
        factors=16, regularization=0.05, alpha=1.0, dtype=np.float64, use_native=True, use_cg=False, use_gpu=False,
        iterations=1, num_threads=1,
    )  # fmt: skip
    theirs.user_factors, theirs.item_factors = params["users"].copy(), params["items"].copy()
    buckets = als.bucketed(rows, columns, values, shape), als.bucketed(columns, rows, values, shape[::-1])
    sweep = jax.jit(lambda p: als.implicit_sweep(p, *buckets, regularisation=0.05))
    ours = {name: jnp.asarray(p) for name, p in params.items()}
    for _ in range(5):
        theirs.fit(csr_matrix(confidence), show_progress=False)
        ours = sweep(ours)
        np.testing.assert_allclose(ours["users"], theirs.user_factors, rtol=1e-8, atol=1e-10)
        np.testing.assert_allclose(ours["items"], theirs.item_factors, rtol=1e-8, atol=1e-10)
