"""Pictures with an overview and tiles, pictures of one slot, and videos of LLaVA's family."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from bigvlm.hub.media import Picture, Reader, channels_last
from bigvlm.processing import tiling
from bigvlm.types import Item


def tiled(model: Any, given: Mapping[str, np.ndarray]) -> list[Picture]:
  """`pixel_values` [n, P, 3, H, W] of n pictures, or [N, 3, H, W] of all their slots, and videos.

  A picture has an overview and tiles, by `image_sizes` [n, 2] and the resolutions
  `options["pinpoints"]`; it has an overview alone where `batch_num_images` says that there are
  several in its prompt. The sizes of videos are of no use.

  Raises:
    ValueError: inputs that are missing or do not fit each other.
  """
  return _tiles(model, given) + _videos(model, given, "image")


def towers(model: Any, given: Mapping[str, np.ndarray]) -> list[Picture]:
  """`pixel_values` [n, 3, H, W] for the encoder "image", `pixel_values_videos` for "video".

  `pixel_values_images` is an older name of the former.

  Raises:
    ValueError: also both names at once.
  """
  names = [k for k in ("pixel_values", "pixel_values_images") if k in given]
  if len(names) > 1:
    raise ValueError(f"the inputs have {names[0]} and {names[1]}, two names of the same")
  found = []
  if names:
    x = channels_last(given[names[0]], names[0])
    item = Item(0, (1, *_grid(model, x)))
    token = model.system.options["image_token"]
    found = [Picture({"image": one[None]}, item, token) for one in x]
  found += _videos(model, given, "video")
  # Every picture has slots of every encoder that is needed, be they none.
  none = {name: x[:0] for picture in found for name, x in picture.media.items()}
  return [p._replace(media=none | p.media) for p in found]


def _tiles(model: Any, given: Mapping[str, np.ndarray]) -> list[Picture]:
  if "pixel_values" not in given:
    return []
  options, x = model.system.options, given["pixel_values"]
  if "image_sizes" not in given:
    raise ValueError("the inputs have pixel_values but no image_sizes, which tell their tiles")
  if x.ndim not in (4, 5):
    raise ValueError(f"pixel_values must be [n, P, 3, H, W] or [N, 3, H, W], not {list(x.shape)}")
  height, width = x.shape[-2:]
  grid = model.module.encoders["image"].grid(height, width)
  items = []
  for size, whole in zip(*_sizes(given), strict=True):
    item = Item(0, (1, *grid))
    if not whole:
      best = tiling.best_resolution(size, options["pinpoints"])
      if best[0] % height or best[1] % width:
        raise ValueError(
          f"image_grid_pinpoints has {best[0]} x {best[1]}, not tiles of {height} x {width} pixels"
        )
      item = item._replace(tiles=(best[0] // height, best[1] // width), size=tuple(size))
    items.append(item)
  counts = np.array([1 + math.prod(i.tiles) if any(i.size) else 1 for i in items], int)
  if x.ndim == 5:  # Filled up to the same number of slots.
    fits = len(x) == len(items) and counts.max(initial=0) <= x.shape[1]
    starts = np.arange(len(x)) * x.shape[1]
  else:
    fits, starts = len(x) == counts.sum(), np.cumsum(counts) - counts
  if not fits:
    raise ValueError(
      f"pixel_values is {list(x.shape)}, but the pictures of image_sizes take {counts.tolist()} "
      f"slots of {height} x {width}"
    )
  flat, token = channels_last(x.reshape(-1, *x.shape[-3:])), options["image_token"]
  spans = zip(items, starts.tolist(), counts.tolist(), strict=True)
  return [Picture({"image": flat[at : at + n]}, item, token) for item, at, n in spans]


def _sizes(given: Mapping[str, np.ndarray]) -> tuple[list[list[int]], list[bool]]:
  """(height, width) of every picture, and whether it is one of several in a prompt, not cut.

  Raises:
    ValueError: sizes of another shape than [n, 2], or of another number of pictures.
  """
  sizes, numbers = given["image_sizes"], given.get("batch_num_images")
  if sizes.ndim != 2 or sizes.shape[1] != 2:
    raise ValueError(f"image_sizes must be [n, 2], not {list(sizes.shape)}")
  sizes = sizes.tolist()
  if numbers is None:
    return sizes, [False] * len(sizes)
  whole = [n != 1 for n in numbers.tolist() for _ in range(n)]
  if len(whole) != len(sizes):
    raise ValueError(f"batch_num_images {numbers.tolist()} are not the {len(sizes)} of image_sizes")
  return sizes, whole


def _videos(model: Any, given: Mapping[str, np.ndarray], encoder: str) -> list[Picture]:
  """`pixel_values_videos` [n, T, 3, H, W]: every one a picture of T slots of an encoder."""
  x = given.get("pixel_values_videos")
  if x is None:
    return []
  if x.ndim != 5:
    raise ValueError(f"pixel_values_videos must be [n, T, 3, H, W], not {list(x.shape)}")
  token = model.system.options.get("video_token")
  if token is None:
    raise ValueError("there are pixel_values_videos, but this model takes pictures only")
  flat = channels_last(x.reshape(-1, *x.shape[2:]), "pixel_values_videos")
  item = Item(0, (x.shape[1], *_grid(model, flat)), video=True)
  videos = flat.reshape(*x.shape[:2], *flat.shape[1:])
  return [Picture({encoder: one}, item, token) for one in videos]


def _grid(model: Any, pixels: np.ndarray) -> tuple[int, int]:
  return model.module.encoders["image"].grid(*pixels.shape[1:3])


# `options["media"]` -> reader.
READERS = {
  "tiles": Reader(
    (
      "pixel_values",
      "image_sizes",
      "batch_num_images",
      "pixel_values_videos",
      "image_sizes_videos",
    ),
    tiled,
  ),
  "towers": Reader(("pixel_values", "pixel_values_images", "pixel_values_videos"), towers),
}
