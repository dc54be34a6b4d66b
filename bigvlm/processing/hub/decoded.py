"""What callers give as images, as uint8 arrays."""

import os
from typing import Any

import numpy as np
from PIL import Image

from bigvlm.processing import image as decoding


def is_image(x: Any) -> bool:
  """Whether a value is one image: a PIL image, an array, bytes or a path."""
  if isinstance(x, np.ndarray):
    return x.ndim < 4
  return isinstance(x, (Image.Image, bytes, bytearray, memoryview, str, os.PathLike))


def flat(images: Any) -> list[Any]:
  """The images of one image, of a batch [N, ...], or of lists in lists, in order."""
  if is_image(images):
    return [images]
  if not isinstance(images, (list, tuple, np.ndarray)):
    raise ValueError(f"images must be an image or a list of images, not {type(images).__name__}")
  return [one for part in images for one in flat(part)]


def nested(given: Any) -> bool:
  """Whether images are lists of images, one for each text."""
  return isinstance(given, (list, tuple)) and any(isinstance(g, (list, tuple)) for g in given)


def groups(given: Any, over_white: bool = True) -> list[list[np.ndarray]]:
  """uint8 [H, W, 3] images, in the lists in which they came, else each by itself.

  Args:
    given: images. over_white: whether transparency is laid over white, or else left out.

  Raises:
    ValueError: something that is no image; names which one.
  """
  parts = [flat(g) for g in given] if nested(given) else [[one] for one in flat(given)]
  found: list[list[np.ndarray]] = []
  count = 0
  for part in parts:
    if not over_white:
      part = [x.convert("RGB") if isinstance(x, Image.Image) else x for x in part]
    found.append([rgb(one, f"images[{count + n}]") for n, one in enumerate(part)])
    count += len(part)
  if not count:
    raise ValueError("there are no images")
  return found


def rgb(source: Any, record: str = "image") -> np.ndarray:
  """uint8 [H, W, 3] of an image, transparency laid over white.

  Args:
    source: a PIL image as it is (its EXIF orientation is not applied, as in the reference), an
      array of uint8, channels last or first; bytes or a path are decoded upright.
    record: what it is called in messages.

  Raises:
    ValueError: it is no image.
  """
  if isinstance(source, np.ndarray):
    return _from_array(source, record)
  if not isinstance(source, Image.Image) or source.mode[0] in "IF":
    return decoding.decode(source, record=record)
  if "A" in source.getbands() or source.info.get("transparency") is not None:
    under = Image.new("RGBA", source.size, (255, 255, 255, 255))
    source = Image.alpha_composite(under, source.convert("RGBA"))
  return np.asarray(source.convert("RGB"))


def _from_array(x: np.ndarray, record: str) -> np.ndarray:
  if x.dtype != np.uint8:
    raise ValueError(f"{record} is {x.dtype}; an image array is uint8")
  if x.ndim == 2:
    x = x[..., None]
  elif x.ndim == 3 and x.shape[0] in (1, 3, 4):
    x = np.moveaxis(x, 0, -1)
  if x.ndim != 3 or x.shape[-1] not in (1, 3, 4) or not x.size:
    raise ValueError(f"{record} of shape {list(x.shape)} is no image; want [H, W, 3]")
  if x.shape[-1] == 1:
    return np.repeat(x, 3, axis=-1)
  if x.shape[-1] == 4:
    alpha = x[..., 3:] / 255
    x = np.round(alpha * x[..., :3] + (1 - alpha) * 255).astype(np.uint8)
  return np.ascontiguousarray(x)
