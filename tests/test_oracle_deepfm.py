"""DeepFM and its family are the same mathematics as DeepCTR-Torch 0.3.0's: float64, logits and every gradient.

    pip install --no-deps deepctr-torch==0.3.0

Its parts are switched off one by one: without layers and pairs it is logistic regression, without layers a
factorisation machine, and WDL is wide and deep. Its numbers are drawn large enough that every part matters.
"""

import os
import sys
import types
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from float64 import agree

from functrain import losses, tree
from functrain.data.table import Csv
from functrain.models.deepfm import DeepFM, FactorizationMachine, LogisticRegression, WideDeep

torch = pytest.importorskip("torch", reason="PyTorch is not installed: pip install 'functrain[oracle]'")
torch.set_num_threads(1)

pytestmark = [pytest.mark.oracle, pytest.mark.usefixtures("float64")]

HIDDEN, FEATURES = (7, 5), 4
KINDS = {
    "logistic_regression": (LogisticRegression(), "DeepFM", {"use_fm": False, "dnn_hidden_units": ()}),
    "fm": (FactorizationMachine(features=FEATURES), "DeepFM", {"use_fm": True, "dnn_hidden_units": ()}),
    "wide_deep": (WideDeep(features=FEATURES, hidden=HIDDEN), "WDL", {"dnn_hidden_units": HIDDEN}),
    "deepfm": (DeepFM(features=FEATURES, hidden=HIDDEN), "DeepFM", {"dnn_hidden_units": HIDDEN}),
}


@pytest.fixture(scope="module")
def deepctr():
    """The module, which without these would want a bar of progress, and ask the web for its newest version."""
    web = types.ModuleType("requests")
    vars(web).update(get=lambda url: types.SimpleNamespace(status_code=0), codes=types.SimpleNamespace(ok=200))
    bar = types.ModuleType("tqdm")
    vars(bar).update(tqdm=None)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "requests", web)
        patch.setitem(sys.modules, "tqdm", bar)
        return pytest.importorskip("deepctr_torch.models", reason="no deepctr-torch: see the first lines of the file")


def generated():
    """x, sizes and y: categories and numbers by turns."""
    rng = np.random.default_rng(0)
    fields = (5, 0, 3, 40, 0, 0, 2)
    x = np.stack([rng.integers(0, size, 64) if size else rng.normal(size=64) for size in fields], 1)
    return x, fields, rng.integers(0, 2, 64)


def criteo(**more):
    """The sample of Criteo's clicks: 13 columns of numbers, 26 of categories, cells missing in most."""
    for place in (os.environ.get("FUNCTRAIN_DATA"), Path(__file__).parents[2] / "shared" / "data"):
        path = place and Path(place) / "criteo-sample" / "criteo_sample.txt"
        if path and path.is_file():
            break
    else:
        pytest.skip("no criteo-sample/criteo_sample.txt where FUNCTRAIN_DATA points")
    made = Csv(
        path=str(path), target=("label",), categories="numbers", validation=0.0, test=0.0, max_categories=1000, **more
    ).load()
    return made.train["x"].astype(np.float64), made.fields, made.train["y"]


CATEGORIES = tuple(f"C{i}" for i in range(1, 27))
DATA = {
    "generated": generated,
    "criteo": partial(criteo, categorical=CATEGORIES),
    "criteo hashed, numbers cut": partial(
        criteo, hashed=dict.fromkeys(CATEGORIES, 30), bucketed={f"I{i}": 6 for i in range(1, 7)}
    ),
}


def theirs(deepctr, name, settings, fields):
    """Their model, every number in it drawn; it sees the columns of x in the same order."""
    inputs = sys.modules["deepctr_torch.inputs"]
    columns = [
        inputs.SparseFeat(f"c{i}", size, embedding_dim=FEATURES) if size else inputs.DenseFeat(f"c{i}", 1)
        for i, size in enumerate(fields)
    ]
    model = getattr(deepctr, name)(columns, columns, task="binary", **settings).double()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.3, generator=generator)
    return model


def as_ours(model, get):
    """`get` of their parameters as a tree of ours: one table of all columns, kernels [in, out]."""
    embeddings = [model.linear_model.embedding_dict, model.embedding_dict]
    weight, vectors = ([get(table.weight) for table in tables.values()] for tables in embeddings)
    params = {
        "bias": get(model.out.bias),
        "weight": {"table": np.concatenate(weight)},
        "numbers": {"kernel": get(model.linear_model.weight)},
    }
    if all(vector is not None for vector in vectors):
        params["embedding"] = {"table": np.concatenate(vectors)}
    if model.use_dnn:
        for i, layer in enumerate(model.dnn.linears):
            params[f"layer{i}"] = {"kernel": get(layer.weight).T, "bias": get(layer.bias)}
        params[f"layer{len(HIDDEN)}"] = {"kernel": get(model.dnn_linear.weight).T}
    return params


@pytest.mark.parametrize("data", DATA)
@pytest.mark.parametrize("kind", KINDS)
def test_logits_and_gradients_are_deepctrs(deepctr, kind, data):
    """With all its weights: the logits, and the gradient of the log loss by each of them."""
    x, fields, y = DATA[data]()
    ours, name, settings = KINDS[kind]
    other = theirs(deepctr, name, settings, fields)
    probability = other(torch.tensor(x))
    torch.nn.functional.binary_cross_entropy(probability, torch.tensor(y[:, None] * 1.0), reduction="sum").backward()
    other.out.task = "regression"  # no sigmoid

    model = ours.__class__(**{**vars(ours), "fields": fields, "inputs": (len(fields),), "outputs": 1}).build()
    params = as_ours(other, lambda parameter: parameter.detach().numpy())
    if kind == "logistic_regression":
        del params["embedding"]  # there without a use
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0))[0])
    assert jax.tree.map(np.shape, params) == jax.tree.map(lambda leaf: leaf.shape, shapes)

    @partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
    def both(params):
        def loss(params):
            logits = model.apply(params, {}, jnp.asarray(x))[0]
            return losses.binary_cross_entropy(logits[:, 0], jnp.asarray(y)).total, logits

        return jax.grad(loss, has_aux=True)(params)

    gradient, logits = both(jax.tree.map(jnp.asarray, params))
    agree(logits, other(torch.tensor(x)), 1e-14)
    expected = as_ours(other, lambda parameter: None if parameter.grad is None else parameter.grad.numpy())
    found = tree.by_path(gradient)
    assert set(found) == set(tree.by_path(expected))
    for path, array in tree.by_path(expected).items():
        assert array.any()
        agree(found[path], np.ascontiguousarray(array), 1e-13)
