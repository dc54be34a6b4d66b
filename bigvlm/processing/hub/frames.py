"""Resizing of video frames with the fixed-point filters of the reference's torchvision.

Both sides of an image are filtered one after the other, the width first, with weights of 15 bits
and a rounding to 8 bits after each. Pillow has weights of 22 bits and another order.
"""

import functools
import math

import numpy as np
from PIL import Image

_BITS = 15


def _bilinear(x: np.ndarray) -> np.ndarray:
  return np.maximum(1 - np.abs(x), 0)


def _bicubic(x: np.ndarray) -> np.ndarray:
  a, x = -0.5, np.abs(x)
  near = ((a + 2) * x - (a + 3)) * x * x + 1
  far = (((x - 5) * x + 8) * x - 4) * a
  return np.where(x < 1, near, np.where(x < 2, far, 0))


def _lanczos(x: np.ndarray) -> np.ndarray:
  return np.where(np.abs(x) < 3, np.sinc(x) * np.sinc(x / 3), 0)


# Number of a Pillow filter -> half its width, and its curve.
_FILTERS = {
  int(Image.Resampling.BILINEAR): (1, _bilinear),
  int(Image.Resampling.BICUBIC): (2, _bicubic),
  int(Image.Resampling.LANCZOS): (3, _lanczos),
}


@functools.lru_cache(maxsize=64)
def _weights(have: int, want: int, resample: int) -> tuple[np.ndarray, int]:
  """Whole numbers [want, have] as float64, and how many of their bits are behind the point."""
  if resample not in _FILTERS:
    raise ValueError(f"resample={resample}: frames are resized by {sorted(_FILTERS)}")
  half, curve = _FILTERS[resample]
  scale = have / want
  wide = max(scale, 1.0)
  rows = np.zeros((want, have))
  for n in range(want):
    centre = scale * (n + 0.5)
    start = max(int(centre - half * wide + 0.5), 0)
    end = min(int(centre + half * wide + 0.5), have)
    w = curve((np.arange(start, end) - centre + 0.5) / wide)
    rows[n, start:end] = w / w.sum()
  bits = 0
  while bits < 22 and int(0.5 + rows.max() * 2 ** (bits + 1)) < 2**_BITS:
    bits += 1
  scaled = rows * 2**bits
  return np.trunc(scaled + np.copysign(0.5, scaled)), bits


def resize(x: np.ndarray, size: tuple[int, int], resample: int) -> np.ndarray:
  """uint8 [h, w, C] of (height, width) `size` from uint8 [H, W, C].

  Args:
    resample: number of a Pillow filter.

  Raises:
    ValueError: another filter than bilinear, bicubic and Lanczos.
  """
  for axis in (1, 0):
    if x.shape[axis] != size[axis]:
      weights, bits = _weights(x.shape[axis], size[axis], resample)
      out = np.tensordot(weights, x.astype(np.float64), (1, axis)) + math.ldexp(0.5, bits)
      out = np.clip(np.floor(np.ldexp(out, -bits)), 0, 255).astype(np.uint8)
      x = np.moveaxis(out, 0, axis)
  return np.ascontiguousarray(x)
