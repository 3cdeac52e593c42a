"""torchaudio for the tests marked oracle, beside a torch whose binaries its own do not fit."""

import importlib.util
import sys
import types
from typing import Any

import pytest


def torchaudio():
    """The module torchaudio; the calling test file is skipped where it, or torch, is not installed.

    The wheels on PyPI are built for torch with CUDA; beside torch's CPU build their compiled library does not load.
    All that is compared here is written in Python, which runs where the library is said not to be there.
    """
    pytest.importorskip("torch", reason="PyTorch is not installed: pip install 'functrain[oracle]'")
    if importlib.util.find_spec("torchaudio") is None:
        pytest.skip("torchaudio is not installed: pip install --no-deps torchaudio==2.11.0", allow_module_level=True)
    try:
        import torchaudio
    except OSError:
        for name in [name for name in sys.modules if name.split(".")[0] == "torchaudio"]:
            del sys.modules[name]
        absent: Any = types.ModuleType("torchaudio._extension")
        absent._IS_TORCHAUDIO_EXT_AVAILABLE, absent.fail_if_no_align = False, lambda f: f
        sys.modules[absent.__name__] = absent
        import torchaudio
    return torchaudio
