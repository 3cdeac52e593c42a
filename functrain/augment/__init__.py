"""Augmentation: images changed at random on the device, inside the step; each kind a pure `apply(batch, *, key)`."""

from functrain.augment.base import Augment
from functrain.augment.geometric import Affine, Crop, Flip, ResizedCrop, Rotate
from functrain.augment.mixing import CutMix, Mixup
from functrain.augment.pixels import Colour, Cutout, Grey, Noise
from functrain.augment.policies import AugMix, RandAugment
from functrain.augment.preview import preview
from functrain.augment.spectra import MaskFrequency, MaskTime
from functrain.augment.waves import Gain, Shift, Speed, WhiteNoise
from functrain.config import kinds

AnyAugment = kinds(
    Flip,
    Crop,
    ResizedCrop,
    Rotate,
    Affine,
    Cutout,
    Colour,
    Grey,
    Noise,
    RandAugment,
    AugMix,
    Mixup,
    CutMix,
    Shift,
    WhiteNoise,
    Speed,
    Gain,
    MaskTime,
    MaskFrequency,
)
"""[[augment]]: every kind a config can name."""

__all__ = [
    "Affine",
    "AnyAugment",
    "AugMix",
    "Augment",
    "Colour",
    "Crop",
    "CutMix",
    "Cutout",
    "Flip",
    "Grey",
    "Mixup",
    "Noise",
    "RandAugment",
    "ResizedCrop",
    "Rotate",
    "preview",
]
