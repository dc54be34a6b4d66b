"""Pictures of an example to the arrays of a batch row."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from bigvlm.processing import image as images
from bigvlm.processing import ops
from bigvlm.processing.image import BadExample
from bigvlm.utils import names

Arrays = dict[str, np.ndarray]


class Pixels:
  """Brings any image to uint8 [height, width, 3].

  Args:
    size: int or (height, width).
    method, antialias: see `ops.resize`.
    backend: "pil", "opencv", or "tf", whose files PIL decodes; see `ops.resize`.
    reduce: a JPEG is decoded at 1/2, 1/4 or 1/8 as long as both sides stay at least `reduce` times
      the wanted size (the small difference is below what resizing does to a picture); 0 = never.
    max_pixels, max_bytes: caps, see `image.Limits`.
  """

  def __init__(
    self,
    size: ops.Size,
    method: str = "bilinear",
    antialias: bool = True,
    backend: str = "pil",
    reduce: float = 2.0,
    max_pixels: int = images.Limits.max_pixels,
    max_bytes: int = images.Limits.max_bytes,
  ):
    self.size = ops.pair(size)
    names.lookup("resize method", method, ops.METHODS)
    if backend not in ops.BACKENDS:
      raise ValueError(names.unknown("image backend", backend, ops.BACKENDS))
    if backend == "opencv":
      _need_opencv()
    self._resize = dict(method=method, antialias=antialias, backend=backend)
    self._backend = "pil" if backend == "tf" else backend
    self._limits = images.Limits(max_pixels, max_bytes)
    reduce = reduce if antialias and method != "nearest" and backend != "tf" else 0
    self._at_least = tuple(int(s * reduce) for s in self.size) if reduce >= 1 else None

  def __call__(self, source: Any, record: str = "") -> np.ndarray:
    pixels = images.decode(
      source,
      limits=self._limits,
      at_least=self._at_least,
      backend=self._backend,
      record=record,
    )
    return ops.resize(pixels, self.size, **self._resize)


def _need_opencv() -> None:
  try:
    import cv2  # noqa: F401
  except ImportError:
    raise ValueError(
      "processor.image.backend='opencv' needs the package opencv-python-headless; install it, or "
      "use backend='pil'"
    ) from None


def one(example: Mapping[str, Any], pixels: Pixels) -> Arrays:
  """The picture of an example in one slot. Raises BadExample."""
  record = str(example.get("id", ""))
  if "image" not in example:
    raise BadExample("has no field 'image'", record)
  return dict(
    image=pixels(example["image"], record)[None],
    image_item=np.ones(1, np.int32),
  )


def none(pixels: Pixels, slots: int = 1) -> Arrays:
  """Slots of the same spec without a picture."""
  return dict(
    image=np.zeros((slots, *pixels.size, 3), np.uint8),
    image_item=np.zeros(slots, np.int32),
  )


def listed(example: Mapping[str, Any], slots: int) -> list[Any]:
  """The pictures of an example, 1 to `slots` of them. Raises BadExample."""
  record = str(example.get("id", ""))
  if "image" not in example:
    raise BadExample("has no field 'image'", record)
  found = example["image"]
  if not isinstance(found, (list, tuple)):
    many = isinstance(found, np.ndarray) and found.ndim == 4
    found = list(found) if many else [found]
  if not 1 <= len(found) <= slots:
    raise BadExample(
      f"has {len(found)} images, but processor.image.count={slots} and at least one is needed",
      record,
    )
  return list(found)
