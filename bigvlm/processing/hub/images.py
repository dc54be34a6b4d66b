"""Image preprocessing as a checkpoint's `preprocessor_config.json` says it (NumPy and Pillow).

`TABLE` has the defaults of transformers' classes, by name. Every step is done with the dtypes and
the rounding of their Pillow backend, so that pixels are equal to its.
"""

import dataclasses
import itertools
import json
import math
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from bigvlm.processing import image as decoding
from bigvlm.utils import names

_CLIP = dict(mean=(0.48145466, 0.4578275, 0.40821073), std=(0.26862954, 0.26130258, 0.27577711))
_HALF = dict(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
_BILINEAR, _BICUBIC = int(Image.Resampling.BILINEAR), int(Image.Resampling.BICUBIC)
_WIDE = 384  # ConvNeXt: from this size on the image is squeezed, not cropped.


@dataclasses.dataclass(frozen=True)
class ImageProcessor:
  """Images to pixels.

  Attributes:
    size: {"height", "width"}, or {"shortest_edge"} with or without {"longest_edge"}.
    resample: number of a Pillow filter.
    crop: {"height", "width"} of the centre crop, or None.
    resize, rescale, normalize, center_crop: whether the step is done.
    factor: that pixels 0..255 are multiplied by.
    mean, std: of the channels, after that.
    kind: "pixels" (one array an image), "patches" (NaFlex), "pan" (crops of long images beside
      it, when `pan` is on) or "percent" (resize and crop by `crop_pct`).
    square: what a size of one number means: both sides, or the shorter one.
    patch, max_patches: of "patches".
    pan, pan_min, pan_max, pan_ratio: of "pan": smallest crop, most crops, least aspect ratio.
    tokens: positions an image takes in a prompt (PaliGemma's files say it), or None.
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
  mean: Sequence[float] = _HALF["mean"]
  std: Sequence[float] = _HALF["std"]
  kind: str = "pixels"
  square: bool = True
  crop_pct: float = 224 / 256
  patch: int = 16
  max_patches: int = 256
  pan: bool = False
  pan_min: int = 256
  pan_max: int = 4
  pan_ratio: float = 1.2
  tokens: int | None = None
  name: str = ""

  def __call__(self, images: Any, **changes: Any) -> dict[str, np.ndarray]:
    """Processes a batch.

    Args:
      images: a PIL image, an array (uint8 [H, W], [H, W, 1|3|4] or [1|3|4, H, W]), bytes of a
        file, a path, or a list of them, nested or not (nested lists are flattened).
      **changes: settings for this call, under the names of `preprocessor_config.json`.

    Returns:
      `pixel_values` float32 [N, 3, H, W]; with kind "patches" float32 [N, P, patch * patch * 3],
      `pixel_attention_mask` int32 [N, P] and `spatial_shapes` int64 [N, 2]; with kind "pan"
      `num_crops` int64 [images] beside `pixel_values` of the images, each before its crops.

    Raises:
      ValueError: something that is no image (names which one), or images of different sizes that
        are not resized.
    """
    todo = self.replace(changes) if changes else self
    arrays = [rgb(one, f"images[{n}]") for n, one in enumerate(flat(images))]
    if not arrays:
      raise ValueError("there are no images")
    if todo.kind == "patches":
      return todo._patches(arrays)
    extra: dict[str, np.ndarray] = {}
    if todo.kind == "pan":
      groups = [[x, *(todo.crops(x) if todo.pan else ())] for x in arrays]
      extra["num_crops"] = np.array([len(group) - 1 for group in groups], np.int64)
      arrays = list(itertools.chain(*groups))
    pixels = [todo._finish(todo._sized(x)) for x in arrays]
    shapes = {x.shape for x in pixels}
    if len(shapes) > 1:
      raise ValueError(f"the images have different sizes {sorted(shapes)}; resize or crop them")
    return {"pixel_values": np.stack(pixels), **extra}

  def replace(self, settings: Mapping[str, Any]) -> "ImageProcessor":
    """The processor with other settings, under the names of `preprocessor_config.json`."""
    given = {}
    for key, value in settings.items():
      if key not in _FIELDS:
        raise ValueError(names.unknown(f"setting of {self.name}", key, _FIELDS))
      if value is not None:
        given[_FIELDS[key]] = _value(key, value, self.square)
    return dataclasses.replace(self, **given)

  def _sized(self, x: np.ndarray) -> np.ndarray:
    """Resizes and crops uint8 [H, W, 3]."""
    if self.resize and self.kind == "percent":
      x = self._percent(x)
    elif self.resize:
      x = self._resized(x, target(x.shape[:2], self.size, self.name))
    return center_crop(x, self.crop) if self.center_crop else x

  def _percent(self, x: np.ndarray) -> np.ndarray:
    side = self.size["shortest_edge"]
    if side >= _WIDE:
      return self._resized(x, (side, side))
    x = self._resized(x, shortest(x.shape[:2], int(side / self.crop_pct)))
    return center_crop(x, {"height": side, "width": side})

  def _resized(self, x: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    return np.asarray(Image.fromarray(x).resize(size[::-1], resample=self.resample))

  def _finish(self, x: np.ndarray) -> np.ndarray:
    """uint8 [H, W, 3] to float32 [3, H, W]."""
    if self.rescale:
      x = (x.astype(np.float64) * self.factor).astype(np.float32)
    if self.normalize:
      x = (x.astype(np.float32) - np.float32(self.mean)) / np.float32(self.std)
    return np.ascontiguousarray(x.transpose(2, 0, 1), np.float32)

  def crops(self, x: np.ndarray) -> list[np.ndarray]:
    """Pan and scan: equal parts along the longer side of a long image, else none."""
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

  def _patches(self, arrays: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
    p, rows = self.patch, self.max_patches
    grids = np.zeros((len(arrays), 2), np.int64)
    mask = np.zeros((len(arrays), rows), np.int32)
    pixels = np.zeros((len(arrays), rows, p * p * 3), np.float32)
    for n, x in enumerate(arrays):
      if self.resize:
        x = self._resized(x, patch_size(x.shape[:2], p, rows))
      x = self._finish(x)
      h, w = x.shape[1] // p, x.shape[2] // p
      if h * w > rows:
        raise ValueError(f"images[{n}] has {h} x {w} patches, more than {rows}; resize it")
      x = x[:, : h * p, : w * p].reshape(3, h, p, w, p).transpose(1, 3, 2, 4, 0)
      grids[n] = h, w
      mask[n, : h * w] = 1
      pixels[n, : h * w] = x.reshape(h * w, -1)
    return {"pixel_values": pixels, "pixel_attention_mask": mask, "spatial_shapes": grids}


def shortest(size: tuple[int, int], edge: int, limit: int | None = None) -> tuple[int, int]:
  """(height, width) with the shorter side `edge` long; the other rounds down.

  Args:
    size: (height, width) of the image.
    edge: of the shorter side.
    limit: of the longer side, which then decides.
  """
  short, long = min(size), max(size)
  if limit is not None:
    raw = None
    if long / short * edge > limit:
      raw = limit * short / long
      edge = int(round(raw))
    if short == edge:
      return size
    other = int((edge if raw is None else raw) * long / short)
  else:
    other = int(edge * long / short)
  return (other, edge) if size[0] >= size[1] else (edge, other)


def target(size: tuple[int, int], wanted: Mapping[str, int], name: str) -> tuple[int, int]:
  """(height, width) that an image becomes."""
  if wanted.get("height") and wanted.get("width"):
    return wanted["height"], wanted["width"]
  if wanted.get("shortest_edge"):
    return shortest(size, wanted["shortest_edge"], wanted.get("longest_edge"))
  raise ValueError(f"{name}: size {dict(wanted)} is neither height and width nor shortest_edge")


def patch_size(size: tuple[int, int], patch: int, most: int) -> tuple[int, int]:
  """The largest (height, width) of that aspect ratio in whole patches, at most `most` of them.

  By the reference's binary search, which ends within 1e-5 of the scale.
  """

  def scaled(scale: float) -> tuple[int, int]:
    height, width = (max(patch, math.ceil(s * scale / patch) * patch) for s in size)
    return height, width

  low, high = 1e-6, 100.0
  while high - low >= 1e-5:
    scale = (low + high) / 2
    height, width = scaled(scale)
    if (height / patch) * (width / patch) <= most:
      low = scale
    else:
      high = scale
  return scaled(low)


def center_crop(x: np.ndarray, size: Mapping[str, int]) -> np.ndarray:
  """The middle of [H, W, C]; what is smaller is laid into zeros."""
  for axis, want in enumerate((size["height"], size["width"])):
    have = x.shape[axis]
    before = (have - want) // 2
    if have < want:
      # Both sides round as the reference's do: its canvas puts the odd row in front.
      pad = math.ceil((want - have) / 2)
      widths = [(0, 0)] * x.ndim
      widths[axis] = (pad, want - have - pad)
      x = np.pad(x, widths)
      before = 0
    x = np.take(x, range(before, before + want), axis=axis)
  return x


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


# Class of the reference -> what differs from `ImageProcessor`. Old names are found by `_class`.
TABLE: dict[str, dict[str, Any]] = {
  "BitImageProcessor": dict(
    size={"shortest_edge": 224}, crop={"height": 224, "width": 224}, center_crop=True,
    square=False, **_CLIP,
  ),
  "CLIPImageProcessor": dict(
    size={"shortest_edge": 224}, crop={"height": 224, "width": 224}, center_crop=True,
    square=False, **_CLIP,
  ),
  "ConvNextImageProcessor": dict(
    size={"shortest_edge": 384}, square=False, kind="percent", **_HALF
  ),
  "Gemma3ImageProcessor": dict(
    size={"height": 224, "width": 224}, resample=_BILINEAR, kind="pan", **_HALF
  ),
  "Siglip2ImageProcessor": dict(resample=_BILINEAR, kind="patches", **_HALF),
  "SiglipImageProcessor": dict(size={"height": 224, "width": 224}, square=False, **_HALF),
  "ViTImageProcessor": dict(size={"height": 224, "width": 224}, resample=_BILINEAR, **_HALF),
}  # fmt: skip
# `model_type` -> class, for files that do not name one.
MODEL_TYPES = {
  "aimv2": "CLIPImageProcessor",
  "aimv2_vision_model": "CLIPImageProcessor",
  "clip": "CLIPImageProcessor",
  "clip_vision_model": "CLIPImageProcessor",
  "convnext": "ConvNextImageProcessor",
  "dinov2": "BitImageProcessor",
  "gemma3": "Gemma3ImageProcessor",
  "metaclip_2": "CLIPImageProcessor",
  "metaclip_2_vision_model": "CLIPImageProcessor",
  "paligemma": "SiglipImageProcessor",
  "siglip": "SiglipImageProcessor",
  "siglip2": "Siglip2ImageProcessor",
  "siglip2_vision_model": "Siglip2ImageProcessor",
  "siglip_vision_model": "SiglipImageProcessor",
  "vit": "ViTImageProcessor",
}
_FIELDS = {
  "crop_pct": "crop_pct",
  "crop_size": "crop",
  "do_center_crop": "center_crop",
  "do_normalize": "normalize",
  "do_pan_and_scan": "pan",
  "do_rescale": "rescale",
  "do_resize": "resize",
  "image_mean": "mean",
  "image_seq_length": "tokens",
  "image_std": "std",
  "max_num_patches": "max_patches",
  "pan_and_scan_max_num_crops": "pan_max",
  "pan_and_scan_min_crop_size": "pan_min",
  "pan_and_scan_min_ratio_to_activate": "pan_ratio",
  "patch_size": "patch",
  "resample": "resample",
  "rescale_factor": "factor",
  "size": "size",
}
_KINDS = {"crop_pct": "percent", "patch_size": "patches", "max_num_patches": "patches"}


def _value(key: str, value: Any, square: bool) -> Any:
  """A value of the file as a field; sizes as a dictionary, whichever way they are written."""
  if key in ("image_mean", "image_std"):
    return tuple(value) if isinstance(value, (list, tuple)) else (value,) * 3
  if key not in ("size", "crop_size") or isinstance(value, Mapping):
    return value
  if isinstance(value, (list, tuple)):
    return {"height": value[0], "width": value[1]}
  if square or key == "crop_size":
    return {"height": value, "width": value}
  return {"shortest_edge": value}


def _class(name: str) -> str:
  """The name in `TABLE` of a class, also of an old or a fast one."""
  for ending in ("Fast", "Pil"):
    name = name.removesuffix(ending)
  return name.replace("FeatureExtractor", "ImageProcessor")


def config(directory: pathlib.Path) -> dict[str, Any] | None:
  """The image part of `processor_config.json`, else `preprocessor_config.json`, or None."""
  for file in ("processor_config.json", "preprocessor_config.json"):
    if (directory / file).is_file():
      found = json.loads((directory / file).read_text("utf-8"))
      found = found.get("image_processor") if file == "processor_config.json" else found
      if isinstance(found, dict):
        return found
  return None


def make(cfg: Mapping[str, Any], model_type: str = "", where: str = "") -> ImageProcessor:
  """The processor that a configuration describes.

  Args:
    cfg: content of `preprocessor_config.json`.
    model_type: decides the class where `cfg` does not name it.
    where: the file, for messages.

  Raises:
    ValueError: a class that is not in `TABLE`.
  """
  name = cfg.get("image_processor_type") or cfg.get("feature_extractor_type")
  name = _class(name or MODEL_TYPES.get(model_type, ""))
  if name not in TABLE:
    what = names.unknown("image processor", name, TABLE)
    raise ValueError(f"{where}: {what}")
  made = ImageProcessor(name=name, **TABLE[name])
  known = {k: v for k, v in cfg.items() if k in _FIELDS and _KINDS.get(k, made.kind) == made.kind}
  return made.replace(known)
