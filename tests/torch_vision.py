"""torchvision for the tests marked oracle, beside a torch whose binaries its own do not fit."""

import importlib.util
import sys

import pytest

_KEPT = []
"""The library of operators: torch forgets what it defines when it goes."""


def torchvision():
    """The module torchvision; the calling test file is skipped where it, or torch, is not installed.

    The wheels of torchvision on PyPI are built for torch with CUDA. Beside torch's CPU build their compiled operators
    do not load, and the import fails at the first one that torchvision describes further (nms, then qnms). With those
    two declared, without a body, all that is written in Python works: models, weights, transforms.
    """
    torch = pytest.importorskip("torch", reason="PyTorch is not installed: pip install 'functrain[oracle]'")
    if importlib.util.find_spec("torchvision") is None:
        pytest.skip("torchvision is not installed: pip install --no-deps torchvision==0.29.2", allow_module_level=True)
    try:
        import torchvision
    except RuntimeError as error:
        if "does not exist" not in str(error):
            raise
        for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
            del sys.modules[name]
        library = torch.library.Library("torchvision", "DEF")
        for operator in ("nms", "qnms"):
            library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _KEPT.append(library)
        import torchvision
    return torchvision
