"""Pictures of a video as 8-bit sRGB, high dynamic range included."""

from __future__ import annotations

import functools

import numpy as np
from av.video.frame import VideoFrame

_PQ, _HLG = 16, 18
_SRGB_FROM_BT2020 = np.array(
    [[1.6605, -0.5876, -0.0728], [-0.1246, 1.1329, -0.0083], [-0.0182, -0.1006, 1.1187]], np.float32
)
"""Linear RGB, ITU-R BT.2087."""


def to_srgb(picture: VideoFrame) -> np.ndarray:
    """uint8 `(h, w, 3)`; HLG and PQ (ITU-R BT.2100) are brought to the range of a screen, with highlights
    compressed.
    """
    if int(picture.color_trc) not in (_PQ, _HLG):
        return picture.to_ndarray(format="rgb24")
    codes = picture.to_ndarray(format="rgb48le").astype(np.uint16)
    linear = _light_of_code(int(picture.color_trc))[codes]
    linear = np.maximum(linear @ _SRGB_FROM_BT2020.T, 0)
    white = np.float32(4)  # this many times diffuse white is still distinguished
    compressed = linear * (1 + linear / white**2) / (1 + linear)
    compressed *= np.float32(1 / 0.53125)  # so that diffuse white (1) stays white
    codes = (np.minimum(compressed, 1) * 4095 + 0.5).astype(np.uint16)
    return _srgb_of_light()[codes]


@functools.cache
def _light_of_code(transfer: int) -> np.ndarray:
    """Linear light of 16-bit codes, 1 = diffuse white (75 % signal in HLG, 203 cd/m2 in PQ: ITU-R BT.2408)."""
    signal = np.linspace(0, 1, 65536)
    if transfer == _HLG:
        a, b, c = 0.17883277, 0.28466892, 0.55991073
        scene = np.where(signal <= 0.5, signal**2 / 3, (np.exp((signal - c) / a) + b) / 12)
        return (scene / ((np.exp((0.75 - c) / a) + b) / 12)).astype(np.float32)
    m1, m2, c1, c2, c3 = 0.1593017578125, 78.84375, 0.8359375, 18.8515625, 18.6875
    power = signal ** (1 / m2)
    return (10000 / 203 * (np.maximum(power - c1, 0) / (c2 - c3 * power)) ** (1 / m1)).astype(np.float32)


@functools.cache
def _srgb_of_light() -> np.ndarray:
    light = np.linspace(0, 1, 4096)
    encoded = np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)
    return (encoded * 255 + 0.5).astype(np.uint8)
