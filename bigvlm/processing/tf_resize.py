"""Bilinear resizing with the numerics of TensorFlow, as big_vision's checkpoints were trained.

Reference: `tf.image.resize(method="bilinear")` with its kernels `ResizeBilinear` (half-pixel
centres) and `ScaleAndTranslate` (triangle filter), and `resize` in google-research/big_vision,
`pp/ops_image.py`. All is float32 in the kernels' order of operations: big_vision casts the result
to uint8 without rounding, so that a last bit may be a grey level.
"""

import functools

import numpy as np

_HALF, _ONE = np.float32(0.5), np.float32(1)


def resize(image: np.ndarray, size: tuple[int, int], antialias: bool) -> np.ndarray:
  """float32 [h, w, ...] of (height, width) `size`, as `tf.image.resize` gives it.

  Args:
    image: uint8 or float32 [H, W, ...].
    size: (height, width).
    antialias: whether the filter widens where the image shrinks.
  """
  image = np.asarray(image, np.float32)
  (height, width), have = size, image.shape[:2]
  if antialias:
    return _filtered(_filtered(image, 0, *_taps(have[0], height)), 1, *_taps(have[1], width))
  top, bottom, y = _between(have[0], height)
  left, right, x = _between(have[1], width)
  rest = [1] * (image.ndim - 2)
  x, y = x.reshape(1, -1, *rest), y.reshape(-1, 1, *rest)
  rows = np.stack([image[top], image[bottom]])
  above, below = rows[:, :, left] + (rows[:, :, right] - rows[:, :, left]) * x
  return above + (below - above) * y


def resize_as(image: np.ndarray, size: tuple[int, int], antialias: bool) -> np.ndarray:
  """`resize` in the dtype of the image, as big_vision's op of that name: uint8 is cut off."""
  out = resize(image, size, antialias)
  return np.clip(out, 0, 255).astype(np.uint8) if image.dtype == np.uint8 else out


@functools.lru_cache(maxsize=64)
def _between(have: int, want: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """The two source pixels of every new one, and how far it is from the first, all [want]."""
  scale = np.float32(have) / np.float32(want)
  at = (np.arange(want, dtype=np.float32) + _HALF) * scale - _HALF
  floor = np.floor(at)
  first = np.maximum(floor, 0).astype(np.int64)
  second = np.minimum(np.ceil(at), have - 1).astype(np.int64)
  return first, second, at - floor


@functools.lru_cache(maxsize=64)
def _taps(have: int, want: int) -> tuple[np.ndarray, np.ndarray]:
  """Source pixels int64 [want, taps] of every new one, and their weights float32 [want, taps]."""
  inverse = _ONE / (np.float32(want) / np.float32(have))
  wide = np.maximum(inverse, _ONE)
  centre = (np.arange(want, dtype=np.float32) + _HALF) * inverse
  start = np.maximum(np.ceil(centre - wide - _HALF), 0).astype(np.int64)
  end = np.minimum(np.floor(centre + wide - _HALF), have - 1).astype(np.int64) + 1
  at = start[:, None] + np.arange((end - start).max())
  distance = np.abs((at.astype(np.float32) + _HALF - centre[:, None]) * (_ONE / wide))
  weights = np.where(at < end[:, None], np.maximum(_ONE - distance, 0), np.float32(0))
  total = np.zeros(want, np.float32)
  for n in range(weights.shape[1]):  # In order: a sum in pairs rounds otherwise.
    total += weights[:, n]
  return np.minimum(at, have - 1), weights * (_ONE / total)[:, None]


def _filtered(image: np.ndarray, axis: int, at: np.ndarray, weights: np.ndarray) -> np.ndarray:
  image = np.moveaxis(image, axis, 0)
  out = np.zeros((len(at), *image.shape[1:]), np.float32)
  for n in range(at.shape[1]):
    out += weights[:, n].reshape(-1, *[1] * (image.ndim - 1)) * image[at[:, n]]
  return np.moveaxis(out, 0, axis)
