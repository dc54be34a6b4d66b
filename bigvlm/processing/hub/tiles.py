"""Image processors that cut an image into tiles; `bigvlm.processing.tiling` says which."""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from bigvlm.processing import tiling
from bigvlm.processing.hub import sizes
from bigvlm.processing.hub.images import UNCROPPED, ImageProcessor
from bigvlm.processing.tiling import Size


def cut(x: np.ndarray, tile: Size) -> list[np.ndarray]:
  """Tiles of [H, W, C], row by row; those at the edges may be smaller."""
  height, width = x.shape[:2]
  return [
    x[top : top + tile[0], left : left + tile[1]]
    for top in range(0, height, tile[0])
    for left in range(0, width, tile[1])
  ]


@dataclasses.dataclass(frozen=True)
class AnyRes(ImageProcessor):
  """LLaVA-NeXT: the whole image and tiles of it on the best of several canvases.

  `pixel_values` float32 [N, tiles, 3, H, W] filled up with zeros, `image_sizes` int64 [N, 2].

  Attributes:
    grids: (height, width) of the canvases.
    pad: whether images get the same number of tiles.
    alone: LLaVA-OneVision: only an image that is alone in its prompt is cut, others are squares;
      `batch_num_images` int64 [texts] says how many there are in each.
  """

  grids: Sequence[Sequence[int]] = ()
  pad: bool = True
  alone: bool = False
  KEYS = ImageProcessor.KEYS | {"image_grid_pinpoints": "grids", "do_pad": "pad"}

  @property
  def tile(self) -> int:
    """Side of a tile."""
    for size in (self.crop, self.size):
      if size and size.get("height"):
        return size["height"]
    return self.size["shortest_edge"]

  def tiles(self, size: Size) -> tuple[Size, Size]:
    """Canvas in pixels and in tiles of an image of (height, width) `size`."""
    best = tiling.best_resolution(size, self.grids)
    height, width = sizes.box(self.size, self.name)
    return best, (best[0] // height, best[1] // width)

  def parts(self, x: np.ndarray) -> list[np.ndarray]:
    """The image and its tiles."""
    best, _ = self.tiles(x.shape[:2])
    fitted = tiling.fitted(x.shape[:2], best)
    canvas = np.zeros((*best, 3), np.uint8)
    top, left = ((b - f) // 2 for b, f in zip(best, fitted, strict=True))
    canvas[top : top + fitted[0], left : left + fitted[1]] = self.resized(x, fitted)
    whole = self.resized(x, sizes.box(self.size, self.name))
    return [whole, *cut(canvas, (self.tile, self.tile))]

  def batch(self, groups):
    groups = [group for group in groups if group]
    found = []
    for group in groups:
      for x in group:
        whole = self.alone and len(group) > 1
        parts = [sizes.square(x, self.mean)] if whole else self.parts(x)
        found.append(self.joined([self.finish(self.sized(part)) for part in parts]))
    out = {
      "pixel_values": sizes.longest(found) if self.pad else self.joined(found),
      "image_sizes": np.array([x.shape[:2] for group in groups for x in group], np.int64),
    }
    if self.alone:
      out["batch_num_images"] = np.array([len(group) for group in groups], np.int64)
    return out


@dataclasses.dataclass(frozen=True)
class Dynamic(ImageProcessor):
  """InternVL: the grid of tiles with the nearest aspect ratio, then a thumbnail.

  `pixel_values` float32 [all tiles, 3, H, W] and `num_patches` int64 [N].

  Attributes:
    crop_tiles: whether images are cut. least, most: numbers of tiles.
  """

  crop_tiles: bool = False
  least: int = 1
  most: int = 12
  KEYS = UNCROPPED | {
    "crop_to_patches": "crop_tiles", "min_patches": "least", "max_patches": "most",
  }  # fmt: skip

  def tiles(self, size: Size) -> Size:
    """Grid of an image of (height, width) `size`; without its thumbnail."""
    if not self.crop_tiles or self.most < 2:
      return 1, 1
    return tiling.aspect_tiles(size, sizes.box(self.size, self.name), self.least, self.most)

  def count(self, size: Size) -> int:
    """Tiles of an image, with its thumbnail."""
    rows, columns = self.tiles(size)
    return rows * columns + (rows * columns > 1)

  def batch(self, groups):
    pixels, counts = [], []
    for x in (x for group in groups for x in group):
      parts = [x]
      if self.crop_tiles and self.most > 1:
        tile = sizes.box(self.size, self.name)
        rows, columns = self.tiles(x.shape[:2])
        parts = cut(self.resized(x, (rows * tile[0], columns * tile[1])), tile)
        parts += [self.resized(x, tile)] if len(parts) > 1 else []
      elif self.resize:
        parts = [self.sized(x)]
      counts.append(len(parts))
      pixels += [self.finish(part) for part in parts]
    return {"pixel_values": self.joined(pixels), "num_patches": np.array(counts, np.int64)}


@dataclasses.dataclass(frozen=True)
class Split(ImageProcessor):
  """Idefics3 and SmolVLM: tiles of an image in whole tiles, then all of it as one more tile.

  `pixel_values` float32 [B, tiles of all images of a row, 3, H, W] filled up with zeros and
  `pixel_attention_mask` int64 [B, tiles, H, W].

  Attributes:
    size: {"longest_edge"} to which an image is resized first. tile: {"longest_edge"} of a tile.
    split: whether images are cut; else they become one tile.
    pad: must be on.
  """

  tile: Mapping[str, int] = dataclasses.field(default_factory=lambda: {"longest_edge": 364})
  split: bool = True
  pad: bool = True
  KEYS = ImageProcessor.KEYS | {
    "do_image_splitting": "split", "do_pad": "pad", "max_image_size": "tile",
  }  # fmt: skip
  ROWS = True

  def first(self, size: Size) -> Size:
    """(height, width) to which an image is resized first."""
    if not self.resize:
      return size
    if self.size.get("longest_edge"):
      return tiling.longest_edge(size, self.size["longest_edge"])
    return sizes.box(self.size, self.name)

  def tiles(self, size: Size) -> Size:
    """Rows and columns of an image of (height, width) `size`; (0, 0) = it is one tile."""
    if not self.split:
      return 0, 0
    side = self.tile["longest_edge"]
    return tiling.split(tiling.whole_tiles(self.first(size), side), side)

  def parts(self, x: np.ndarray) -> list[np.ndarray]:
    """The tiles of an image, all of it last."""
    side = self.tile["longest_edge"]
    if self.resize:
      x = self.resized(x, self.first(x.shape[:2]))
    if not self.split:
      return [self.resized(x, (side, side))]
    x = self.resized(x, tiling.whole_tiles(x.shape[:2], side))
    if tiling.split(x.shape[:2], side) == (0, 0):
      return [x]
    return [*cut(x, (side, side)), self.resized(x, (side, side))]

  def batch(self, groups):
    if not self.pad:
      raise ValueError(f"{self.name}: do_pad must be on")
    rows = [[self.finish(part) for x in group for part in self.parts(x)] for group in groups]
    pixels, mask = sizes.stacked(rows)
    return {"pixel_values": pixels, "pixel_attention_mask": mask}


@dataclasses.dataclass(frozen=True)
class Canvas(ImageProcessor):
  """Llama 3.2-Vision: an image in the corner of the smallest canvas of tiles that it fits.

  `pixel_values` float32 [B, images, tiles, 3, H, W], `aspect_ratio_ids` int64 [B, images] (0 =
  there is no image), `aspect_ratio_mask` int64 [B, images, tiles].

  Attributes:
    most: tiles of an image.
  """

  most: int = 4
  KEYS = ImageProcessor.KEYS | {"max_image_tiles": "most"}
  ROWS = True

  def tiles(self, size: Size) -> tiling.Canvas:
    """Canvas of an image of (height, width) `size`."""
    height, width = sizes.box(self.size, self.name)
    if height != width or not self.resize:
      raise ValueError(f"{self.name}: tiles must be square and do_resize on, not {self.size}")
    return tiling.canvas(size, height, self.most)

  def batch(self, groups):
    height, width = sizes.box(self.size, self.name)
    shape = (len(groups), max(map(len, groups)))
    pixels = np.zeros((*shape, self.most, 3, height, width), np.float32)
    numbers = np.zeros(shape, np.int64)
    mask = np.zeros((*shape, self.most), np.int64)
    mask[..., 0] = 1  # Also where there is no image.
    shapes = tiling.canvas_shapes(self.most)
    for b, group in enumerate(groups):
      for n, x in enumerate(group):
        rows, columns, h, w = self.tiles(x.shape[:2])
        under = np.zeros((rows * height, columns * width, 3), np.uint8)
        under[:h, :w] = self.resized(x, (h, w))
        parts = [self.finish(part) for part in cut(under, (height, width))]
        pixels[b, n, : len(parts)] = parts
        numbers[b, n] = shapes.index((rows, columns)) + 1
        mask[b, n, : len(parts)] = 1
    return {"pixel_values": pixels, "aspect_ratio_ids": numbers, "aspect_ratio_mask": mask}
