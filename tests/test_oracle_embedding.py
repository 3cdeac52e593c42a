"""The losses of embeddings are their formulas in torch's words: values and gradients in float64, masked too."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from float64 import agree, draw

from functrain.tasks.embedding import arcface, batch_contrastive, batch_triplet

torch = pytest.importorskip("torch", reason="PyTorch is not installed: pip install 'functrain[oracle]'")
F = torch.nn.functional
torch.set_num_threads(1)

pytestmark = [pytest.mark.oracle, pytest.mark.usefixtures("float64")]

EXACT = 1e-12  # of the largest magnitude in the array compared
LABELS = np.array([0, 1, 1, 0, 2, 1, 3, 0, 1, 2, 0])  # class 3 has one example
MASKS = {"none": None, "some": np.array([1.0, 1, 0, 1, 1, 1, 1, 0, 1, 0, 1]), "one": np.eye(11)[4]}


def compare(ours, theirs, arrays):
    """Totals, counts, and the gradients of the total by each array."""

    def total(*arrays):
        loss = ours(*arrays)
        return loss.total, loss.count

    at = tuple(range(len(arrays)))
    (value, count), gradients = jax.value_and_grad(total, at, has_aux=True)(*map(jnp.asarray, arrays))
    tensors = [torch.tensor(a, requires_grad=True) for a in arrays]
    each = theirs(*tensors)
    sum_ = torch.stack(each).sum() if each else sum(t.sum() for t in tensors) * 0
    sum_.backward()
    agree(value, sum_, EXACT)
    assert float(count) == len(each)
    for gradient, tensor in zip(gradients, tensors, strict=True):
        agree(gradient, tensor.grad, EXACT)


def counted(mask):
    return range(len(LABELS)) if mask is None else np.flatnonzero(mask).tolist()


@pytest.mark.parametrize("margin", [0.0, 0.5, 1.5])
@pytest.mark.parametrize("mask", MASKS)
def test_arcface(mask, margin):
    """The angle by acos, the margin added to it, and the line beyond pi - margin: some of these lie there."""
    embeddings, centres = draw(0, 11, 5), draw(1, 4, 5)
    embeddings[[1, 4]] = draw(2, 2, 5) / 20 - 3 * centres[LABELS[[1, 4]]]  # nearly opposite to their own centres

    def theirs(embeddings, centres):
        cosines = F.normalize(embeddings) @ F.normalize(centres).T
        losses = []
        for i in counted(MASKS[mask]):
            row = list(cosines[i])
            angle = torch.acos(row[LABELS[i]])
            beyond = angle + margin > math.pi
            row[LABELS[i]] = row[LABELS[i]] - margin * math.sin(margin) if beyond else torch.cos(angle + margin)
            losses.append(F.cross_entropy(16 * torch.stack(row), torch.tensor(LABELS[i])))
        return losses

    weights = None if MASKS[mask] is None else jnp.asarray(MASKS[mask])
    compare(
        lambda e, c: arcface(e, jnp.asarray(LABELS), c, margin=margin, scale=16.0, mask=weights),
        theirs,
        [embeddings, centres],
    )


def triplets(mining, distance, rows):
    """The triplets (anchor, positive, negative) that are mined, by hand."""
    found = []
    for a in rows:
        positives = [p for p in rows if p != a and LABELS[p] == LABELS[a]]
        negatives = [n for n in rows if LABELS[n] != LABELS[a]]
        if not positives or not negatives:
            continue
        if mining == "all":
            found += itertools.product([a], positives, negatives)
        elif mining == "hard":
            p = max(positives, key=lambda p: distance[a, p])
            found.append((a, p, min(negatives, key=lambda n: distance[a, n])))
        else:
            for p in positives:
                beyond = [n for n in negatives if distance[a, n] > distance[a, p]]
                n = (
                    min(beyond, key=lambda n: distance[a, n])
                    if beyond
                    else max(negatives, key=lambda n: distance[a, n])
                )
                found.append((a, p, n))
    return found


@pytest.mark.parametrize("mining", ["all", "hard", "semi_hard"])
@pytest.mark.parametrize("mask", MASKS)
def test_batch_triplet(mask, mining):
    """Triplet by triplet, each by torch's norm."""

    def theirs(x):
        distance = torch.cdist(x, x).detach().numpy()
        chosen = triplets(mining, distance, counted(MASKS[mask]))
        return [F.relu((x[a] - x[p]).norm() - (x[a] - x[n]).norm() + 0.7) for a, p, n in chosen]

    weights = None if MASKS[mask] is None else jnp.asarray(MASKS[mask])
    compare(
        lambda e: batch_triplet(e, jnp.asarray(LABELS), margin=0.7, mining=mining, mask=weights),
        theirs,
        [draw(3, 11, 3)],
    )


@pytest.mark.parametrize("mask", MASKS)
def test_batch_contrastive(mask):
    """Pair by pair."""

    def theirs(x):
        losses = []
        for i, j in itertools.combinations(counted(MASKS[mask]), 2):
            d = (x[i] - x[j]).norm()
            losses.append((d**2 if LABELS[i] == LABELS[j] else F.relu(1.5 - d) ** 2) / 2)
        return losses

    weights = None if MASKS[mask] is None else jnp.asarray(MASKS[mask])
    compare(lambda e: batch_contrastive(e, jnp.asarray(LABELS), margin=1.5, mask=weights), theirs, [draw(4, 11, 3)])
