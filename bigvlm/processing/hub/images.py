"""Image preprocessing as a checkpoint's `preprocessor_config.json` says it (NumPy and Pillow).

`ImageProcessor` makes one array of pixels of an image. Kinds that cut, pack or pad them are classes
of their own (`tiles`, `native`, `square`); `image_table` knows which class of transformers is
which. Every step is done with the dtypes and the rounding of their Pillow backend, so that pixels
are equal to its.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self

import numpy as np
from PIL import Image

from bigvlm.processing.hub import decoded, sizes
from bigvlm.utils import names

HALF = (0.5, 0.5, 0.5)
_BICUBIC = int(Image.Resampling.BICUBIC)
_WIDE = 384  # ConvNeXt: from this size on the image is squeezed, not cropped.
_SIZES = ("size", "crop_size", "high_res_size", "image_size", "pad_size")
Groups = Sequence[Sequence[np.ndarray]]


@dataclasses.dataclass(frozen=True)
class ImageProcessor:
  """Images to pixels, one array each.

  Attributes:
    size: {"height", "width"}, or {"shortest_edge"} with or without {"longest_edge"}.
    resample: number of a Pillow filter.
    crop: {"height", "width"} of the centre crop, or None.
    resize, rescale, normalize, center_crop: whether the step is done.
    factor: that pixels 0..255 are multiplied by.
    mean, std: of the channels, after that.
    square: what a size of one number means: both sides, or the shorter one.
    tokens: positions an image takes in a prompt (PaliGemma's files say it), or None.
    output: name of the pixels.
    name: the class, for messages.
  """

  size: Mapping[str, int] | None = None
  resample: int = _BICUBIC
  crop: Mapping[str, int] | None = None
  resize: bool = True
  rescale: bool = True
  normalize: bool = True
  center_crop: bool = False
  factor: float = 1 / 255
  mean: Sequence[float] = HALF
  std: Sequence[float] = HALF
  square: bool = True
  tokens: int | None = None
  output: str = "pixel_values"
  name: str = ""

  # Name in the files -> field.
  KEYS: ClassVar[Mapping[str, str]] = {
    "crop_size": "crop",
    "do_center_crop": "center_crop",
    "do_normalize": "normalize",
    "do_rescale": "rescale",
    "do_resize": "resize",
    "image_mean": "mean",
    "image_seq_length": "tokens",
    "image_std": "std",
    "resample": "resample",
    "rescale_factor": "factor",
    "size": "size",
  }
  ROWS: ClassVar[bool] = False  # Whether a list of images without lists in it is one row.

  def __call__(self, images: Any, **changes: Any) -> dict[str, np.ndarray]:
    """Processes a batch.

    Args:
      images: a PIL image, an array (uint8 [H, W], [H, W, 1|3|4] or [1|3|4, H, W]), bytes of a
        file, a path, or a list of them, nested or not.
      **changes: settings for this call, under the names of `preprocessor_config.json`.

    Returns:
      See `batch`.

    Raises:
      ValueError: something that is no image (names which one), or images of different sizes that
        are not resized.
    """
    groups = decoded.groups(images)
    if self.ROWS and not decoded.nested(images):
      groups = [[x for group in groups for x in group]]
    return self.replace(changes).batch(groups)

  def batch(self, groups: Groups) -> dict[str, np.ndarray]:
    """Arrays of images uint8 [H, W, 3] in lists, one list for each text.

    Returns:
      `pixel_values` float32 [N, 3, H, W].
    """
    return {self.output: self.joined([self.finish(self.sized(x)) for g in groups for x in g])}

  def replace(self, settings: Mapping[str, Any]) -> Self:
    """The processor with other settings, under the names of `preprocessor_config.json`."""
    given = {}
    for key, value in settings.items():
      if key not in self.KEYS:
        raise ValueError(names.unknown(f"setting of {self.name}", key, self.KEYS))
      if value is not None:
        given[self.KEYS[key]] = _value(key, value, self.square)
    return dataclasses.replace(self, **given) if given else self

  def settled(self) -> Self:
    """The processor of the files, which calls may change: what must not follow them is set."""
    return self

  def shape(self) -> tuple[int, int]:
    """(height, width) of the pixels of an image, where it is the same for all.

    Raises:
      ValueError: it is not.
    """
    if self.center_crop and self.crop:
      return self.crop["height"], self.crop["width"]
    if self.size and self.size.get("height") and self.size.get("width"):
      return self.size["height"], self.size["width"]
    raise ValueError(f"{self.name}: images become of different sizes with size {self.size}")

  def sized(self, x: np.ndarray) -> np.ndarray:
    """Resizes and crops uint8 [H, W, 3]."""
    if self.resize:
      x = self.resized(x, sizes.target(x.shape[:2], self.size, self.name))
    return sizes.center_crop(x, self.crop) if self.center_crop else x

  def resized(self, x: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """uint8 [h, w, 3] of (height, width) `size`."""
    return np.asarray(Image.fromarray(x).resize(size[::-1], resample=self.resample))

  def finish(self, x: np.ndarray) -> np.ndarray:
    """uint8 [H, W, 3] to float32 [3, H, W]."""
    if self.rescale:
      x = (x.astype(np.float64) * self.factor).astype(np.float32)
    if self.normalize:
      x = (x.astype(np.float32) - np.float32(self.mean)) / np.float32(self.std)
    return np.ascontiguousarray(x.transpose(2, 0, 1), np.float32)

  def joined(self, pixels: Sequence[np.ndarray]) -> np.ndarray:
    """Arrays of one shape as one, [N, ...]."""
    shapes = {x.shape for x in pixels}
    if len(shapes) > 1:
      raise ValueError(f"the images have different sizes {sorted(shapes)}; resize or crop them")
    return np.stack(pixels)


@dataclasses.dataclass(frozen=True)
class Plain(ImageProcessor):
  """CLIP, SigLIP, ViT and others that have no steps of their own.

  Attributes:
    pad: whether images are filled up at the end with zeros, on the right and below.
    pad_size: {"height", "width"} that they get then; None = the largest of the batch.
  """

  pad: bool = False
  pad_size: Mapping[str, int] | None = None
  KEYS = ImageProcessor.KEYS | {"do_pad": "pad", "pad_size": "pad_size"}

  def shape(self):
    if self.pad and self.pad_size:
      return self.pad_size["height"], self.pad_size["width"]
    return super().shape()

  def joined(self, pixels):
    return super().joined(sizes.filled(pixels, self.pad_size, self.name) if self.pad else pixels)


@dataclasses.dataclass(frozen=True)
class Fixed(Plain):
  """Idefics: the size is also called `image_size`."""

  KEYS = Plain.KEYS | {"image_size": "size"}


@dataclasses.dataclass(frozen=True)
class Percent(ImageProcessor):
  """ConvNeXt: resized so that a crop of `crop_pct` of it has the wanted size."""

  crop_pct: float = 224 / 256
  KEYS = ImageProcessor.KEYS | {"crop_pct": "crop_pct"}

  def sized(self, x):
    if self.resize:
      side = self.size.get("shortest_edge")
      if not side:
        raise ValueError(f"{self.name}: size {dict(self.size)} needs shortest_edge")
      if side >= _WIDE:
        x = self.resized(x, (side, side))
      else:
        x = self.resized(x, sizes.shortest(x.shape[:2], int(side / self.crop_pct)))
        x = sizes.center_crop(x, {"height": side, "width": side})
    return sizes.center_crop(x, self.crop) if self.center_crop else x


@dataclasses.dataclass(frozen=True)
class Patches(ImageProcessor):
  """NaFlex: images in their own aspect ratio as rows of patches.

  `pixel_values` float32 [N, P, patch * patch * 3], `pixel_attention_mask` int32 [N, P] and
  `spatial_shapes` int64 [N, 2].
  """

  patch: int = 16
  max_patches: int = 256
  KEYS = ImageProcessor.KEYS | {"max_num_patches": "max_patches", "patch_size": "patch"}

  def batch(self, groups):
    arrays = [x for group in groups for x in group]
    p, rows = self.patch, self.max_patches
    grids = np.zeros((len(arrays), 2), np.int64)
    mask = np.zeros((len(arrays), rows), np.int32)
    pixels = np.zeros((len(arrays), rows, p * p * 3), np.float32)
    for n, x in enumerate(arrays):
      if self.resize:
        x = self.resized(x, sizes.patch_size(x.shape[:2], p, rows))
      x = self.finish(x)
      h, w = x.shape[1] // p, x.shape[2] // p
      if h * w > rows:
        raise ValueError(f"images[{n}] has {h} x {w} patches, more than {rows}; resize it")
      x = x[:, : h * p, : w * p].reshape(3, h, p, w, p).transpose(1, 3, 2, 4, 0)
      grids[n] = h, w
      mask[n, : h * w] = 1
      pixels[n, : h * w] = x.reshape(h * w, -1)
    return {"pixel_values": pixels, "pixel_attention_mask": mask, "spatial_shapes": grids}


# Of kinds that have no centre crop, whatever their files say.
UNCROPPED = {
  k: v for k, v in ImageProcessor.KEYS.items() if k not in ("do_center_crop", "crop_size")
}


@dataclasses.dataclass(frozen=True)
class PanAndScan(ImageProcessor):
  """Gemma 3: crops of long images beside them, when it is on.

  `pixel_values` of the images, each before its crops, and `num_crops` int64 [images].

  Attributes:
    pan, pan_min, pan_max, pan_ratio: whether, smallest crop, most crops, least aspect ratio.
  """

  pan: bool = False
  pan_min: int = 256
  pan_max: int = 4
  pan_ratio: float = 1.2
  KEYS = UNCROPPED | {
    "do_pan_and_scan": "pan",
    "pan_and_scan_max_num_crops": "pan_max",
    "pan_and_scan_min_crop_size": "pan_min",
    "pan_and_scan_min_ratio_to_activate": "pan_ratio",
  }

  def batch(self, groups):
    every = [[x, *(self.crops(x) if self.pan else ())] for group in groups for x in group]
    counts = np.array([len(parts) - 1 for parts in every], np.int64)
    return super().batch(every) | {"num_crops": counts}

  def crops(self, x: np.ndarray) -> list[np.ndarray]:
    """Equal parts along the longer side of a long image, else none."""
    height, width = x.shape[:2]
    long, short = max(height, width), min(height, width)
    if long / short < self.pan_ratio:
      return []
    count = min(math.floor(long / self.pan_min), math.floor(long / short + 0.5))
    count = min(self.pan_max, max(2, count))
    step = math.ceil(long / count)
    if min(step, short) < self.pan_min:
      return []
    starts = range(0, step * count, step)
    if width >= height:
      return [x[:, at : at + step] for at in starts]
    return [x[at : at + step] for at in starts]


def _value(key: str, value: Any, square: bool) -> Any:
  """A value of the file as a field; sizes as a dictionary, whichever way they are written.

  Raises:
    ValueError: a value that the field cannot have.
  """
  if key.endswith(("image_mean", "image_std")):
    three = tuple(value) if isinstance(value, (list, tuple)) else (value,) * 3
    _numbers(key, value, three, 3)
    return three
  if key not in _SIZES:
    return value
  if isinstance(value, Mapping):
    _numbers(key, value, [n for n in value.values() if n is not None])
    return value
  if isinstance(value, (list, tuple)):
    _numbers(key, value, value, 2)
    return {"height": value[0], "width": value[1]}
  _numbers(key, value, [value])
  if square or key == "crop_size":
    return {"height": value, "width": value}
  return {"shortest_edge": value}


def _numbers(key: str, value: Any, parts: Sequence[Any], count: int | None = None) -> None:
  right = all(isinstance(n, (int, float)) and not isinstance(n, bool) for n in parts)
  if not right or len(parts) != (count or len(parts)):
    raise ValueError(f"{key} is {value!r}; want numbers" + (f", {count} of them" if count else ""))
