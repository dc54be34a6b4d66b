"""Image processors that keep the aspect ratio of an image: packed patches, masks, strips."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from bigvlm.processing import tiling
from bigvlm.processing.hub import frames, sizes
from bigvlm.processing.hub.images import ImageProcessor
from bigvlm.processing.tiling import Size


@dataclasses.dataclass(frozen=True)
class Packed(ImageProcessor):
  """Qwen2-VL: patches of all images behind each other, in squares of `merge` x `merge`.

  `pixel_values` float32 [all patches, 3 * temporal * patch * patch] and `image_grid_thw` int64
  [N, 3]; VideoLLaMA3 has `image_merge_sizes` int64 [N] beside them.

  Attributes:
    size: {"shortest_edge", "longest_edge"}: least and most PIXELS (height * width).
    least, most: the same, from files that call them min_pixels and max_pixels.
    patch, temporal, merge: sides of a patch, of patches that become one token.
    merges: whether `image_merge_sizes` are given.
  """

  patch: int = 14
  temporal: int = 2
  merge: int = 2
  least: int | None = None
  most: int | None = None
  merges: bool = False
  KEYS = ImageProcessor.KEYS | {
    "max_pixels": "most",
    "merge_size": "merge",
    "min_pixels": "least",
    "patch_size": "patch",
    "temporal_patch_size": "temporal",
  }

  def replace(self, settings):
    """As of `ImageProcessor`; a size comes before the number of pixels that the files name."""
    if settings.get("size") is not None:
      settings = {"min_pixels": None, "max_pixels": None} | dict(settings)
      bare = dataclasses.replace(self, least=None, most=None)
      return super(Packed, bare).replace(settings)
    return super().replace(settings)

  def target(self, size: Size) -> Size:
    """(height, width) that an image of that size becomes."""
    if not self.resize:
      return size
    least = self.least if self.least is not None else self.size.get("shortest_edge")
    most = self.most if self.most is not None else self.size.get("longest_edge")
    if not least or not most:
      raise ValueError(f"{self.name}: size {dict(self.size)} needs shortest_edge and longest_edge")
    return tiling.smart_resize(size, self.patch * self.merge, least, most)

  def grid(self, size: Size) -> Size:
    """Patches (rows, columns) of an image of (height, width) `size`."""
    height, width = self.target(size)
    return height // self.patch, width // self.patch

  def packed(self, frames: np.ndarray) -> np.ndarray:
    """Patches [t * h * w, 3 * temporal * patch * patch] of frames [T, 3, H, W]; T is a multiple."""
    t, _, height, width = frames.shape
    m, p, s = self.merge, self.patch, self.temporal
    h, w = height // p, width // p
    x = frames.reshape(t // s, s, 3, h // m, m, p, w // m, m, p)
    return x.transpose(0, 3, 6, 4, 7, 2, 1, 5, 8).reshape(t // s * h * w, 3 * s * p * p)

  def batch(self, groups):
    found, grids = [], []
    for x in (x for group in groups for x in group):
      x = self.finish(self.resized(x, self.target(x.shape[:2])) if self.resize else x)
      found.append(self.packed(np.broadcast_to(x, (self.temporal, *x.shape))))
      grids.append((1, x.shape[1] // self.patch, x.shape[2] // self.patch))
    out = {
      "pixel_values": np.concatenate(found),
      "image_grid_thw": np.array(grids, np.int64),
    }
    if self.merges:
      out["image_merge_sizes"] = np.full(len(grids), self.merge, np.int64)
    return out


@dataclasses.dataclass(frozen=True)
class WholePatches(ImageProcessor):
  """Pixtral: images in whole patches, filled up with zeros on the right and below.

  `pixel_values` float32 [N, 3, H, W] and `image_sizes` int64 [N, 2], without what was filled up.

  Attributes:
    size: {"longest_edge"} or {"height", "width"} that an image must fit into.
    patch: {"height", "width"}, or one number for both.
  """

  patch: Mapping[str, int] | int = 16
  pad: bool = True
  KEYS = ImageProcessor.KEYS | {"do_pad": "pad", "patch_size": "patch"}

  def target(self, size: Size) -> Size:
    """(height, width) that an image of that size becomes."""
    if not self.resize:
      return size
    p = self.patch
    patch = (p["height"], p["width"]) if isinstance(p, Mapping) else (p, p)
    edge = self.size.get("longest_edge")
    return tiling.within(size, (edge, edge) if edge else sizes.box(self.size, self.name), patch)

  def sized(self, x):
    if self.resize:
      x = self.resized(x, self.target(x.shape[:2]))
    return sizes.center_crop(x, self.crop) if self.center_crop else x

  def batch(self, groups):
    found = [self.finish(self.sized(x)) for group in groups for x in group]
    shapes = np.array([x.shape[1:] for x in found], np.int64)
    pixels = sizes.stacked([[x] for x in found])[0][:, 0] if self.pad else self.joined(found)
    return {"pixel_values": pixels, "image_sizes": shapes}


@dataclasses.dataclass(frozen=True)
class Masked(ImageProcessor):
  """Idefics2: images of any size between two edges, filled up with zeros.

  `pixel_values` float32 [B, images, 3, H, W] and `pixel_attention_mask` int64 [B, images, H, W].

  Attributes:
    split: whether an image becomes its four quarters and itself.
    pad: must be on.
  """

  split: bool = False
  pad: bool = True
  KEYS = ImageProcessor.KEYS | {"do_image_splitting": "split", "do_pad": "pad"}
  ROWS = True

  def sized(self, x):
    if not self.resize:
      return x
    if self.size.get("shortest_edge") and self.size.get("longest_edge"):
      edges = self.size["shortest_edge"], self.size["longest_edge"]
      return self.resized(x, tiling.between_edges(x.shape[:2], *edges))
    return self.resized(x, sizes.box(self.size, self.name))

  def batch(self, groups):
    if not self.pad:
      raise ValueError(f"{self.name}: do_pad must be on")
    rows = []
    for group in groups:
      parts = [part for x in group for part in (*(quarters(x) if self.split else ()), x)]
      rows.append([self.finish(self.sized(part)) for part in parts])
    pixels, mask = sizes.stacked(rows)
    return {"pixel_values": pixels, "pixel_attention_mask": mask}


def quarters(x: np.ndarray) -> list[np.ndarray]:
  """Four parts of [H, W, C], row by row."""
  top, left = x.shape[0] // 2, x.shape[1] // 2
  return [x[:top, :left], x[:top, left:], x[top:, :left], x[top:, left:]]


@dataclasses.dataclass(frozen=True)
class Strips(ImageProcessor):
  """Fuyu: patches of the part of a large canvas that an image covers.

  `image_patches` float32 [all patches, patch * patch * 3] of all images behind each other.

  Attributes:
    size: {"height", "width"} of the canvas. patch: {"height", "width"}.
    fill: value of the canvas beside the image, 0..255. fill_mode: must be "constant".
  """

  patch: Mapping[str, int] = dataclasses.field(default_factory=lambda: {"height": 30, "width": 30})
  pad: bool = True
  fill: float = 1.0
  fill_mode: str = "constant"
  KEYS = ImageProcessor.KEYS | {
    "do_pad": "pad",
    "padding_mode": "fill_mode",
    "padding_value": "fill",
    "patch_size": "patch",
  }

  def _patch(self) -> Size:
    p: Any = self.patch
    return (p["height"], p["width"]) if isinstance(p, Mapping) else (p, p)

  def resized(self, x, size):
    return frames.resize(x, size, self.resample)  # The reference has no other way for it.

  def target(self, size: Size) -> Size:
    """(height, width) that an image of that size becomes."""
    return tiling.shrunk(size, sizes.box(self.size, self.name)) if self.resize else size

  def grid(self, size: Size) -> Size:
    """Patches (rows, columns) of an image of (height, width) `size`."""
    box = sizes.box(self.size, self.name)
    return tiling.covering(self.target(size), box, self._patch())

  def batch(self, groups):
    if not self.pad or self.fill_mode != "constant":
      raise ValueError(f"{self.name}: do_pad must be on, and padding_mode 'constant'")
    found = []
    ph, pw = self._patch()
    for x in (x for group in groups for x in group):
      rows, columns = self.grid(x.shape[:2])
      height, width = self.target(x.shape[:2])
      under = np.full((rows * ph, columns * pw, 3), self.fill).astype(np.uint8)
      under[:height, :width] = self.resized(x, (height, width))
      pixels = self.finish(under).reshape(3, rows, ph, columns, pw)
      found.append(pixels.transpose(1, 3, 2, 4, 0).reshape(rows * columns, -1))
    return {"image_patches": np.concatenate(found)}
