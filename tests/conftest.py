"""What all tests share: small arrays, real data where it is at hand, a cache of compiled programs."""

import os
from importlib.metadata import version
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
if version("jaxlib") < "0.11":  # later ones do not know the first of these, and end at it
    # Compiling is most of what the suite costs, and half of that goes with these two. XLA_FLAGS="" in the environment
    # compiles everything as a person's own runs are.
    _FLAGS = "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
    os.environ.setdefault("XLA_FLAGS", _FLAGS)

import pytest

ROOT = Path(__file__).resolve().parent.parent


def pytest_addoption(parser):
    parser.addoption("--slow", action="store_true", help="run the tests marked slow too")


def pytest_collection_modifyitems(config, items):
    if not config.getoption("--slow"):
        for item in items:
            if "slow" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="slow: run with --slow"))


@pytest.fixture(autouse=True, scope="session")
def _cache(tmp_path_factory):
    """Programs compiled by the commands under test are kept for the session alone."""
    base = tmp_path_factory.getbasetemp()
    base = base.parent if base.name.startswith("popen") else base  # one cache for all workers
    os.environ["FUNCTRAIN_CACHE"] = str(base / "functrain-cache")
    from functrain.runs import use_compilation_cache

    use_compilation_cache()


@pytest.fixture
def quick():
    """Programs compiled with few of XLA's optimisations: for tests in which compiling takes longer than running, and
    that compare nothing with a run of the command."""
    import jax

    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture
def float64():
    """64-bit types enabled."""
    import jax

    with jax.enable_x64(True):
        yield


@pytest.fixture
def root():
    """The repository."""
    return ROOT


@pytest.fixture(scope="session")
def digits():
    """The digits, split with seed 0."""
    from functrain.data import Digits

    return Digits().load()
