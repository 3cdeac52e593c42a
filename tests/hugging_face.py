"""transformers, for tests: imported once, and only beside a torchvision that imports."""

import importlib.util
import warnings

import pytest
from torch_audio import torchaudio
from torch_vision import torchvision


def transformers():
    """The library; the tests that ask for it are skipped where it is not installed.

    It imports torchvision and torchaudio where they are installed, so what keeps them from importing is mended first.
    """
    pytest.importorskip("torch", reason="PyTorch is not installed: pip install 'functrain[oracle]'")
    if importlib.util.find_spec("transformers") is None:
        pytest.skip("transformers is not installed: pip install 'functrain[oracle]'", allow_module_level=True)
    if importlib.util.find_spec("torchvision") is not None:
        torchvision()
    if importlib.util.find_spec("torchaudio") is not None:
        torchaudio()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import transformers

        transformers.logging.set_verbosity_error()
    return transformers
