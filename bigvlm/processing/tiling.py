"""How pictures are cut and resized, from their (height, width) alone: plain Python, no pixels.

Every function is exact against the rounding of its system's reference, so that the number of
tokens of a picture is known before it is read. Sizes are (height, width) in pixels, grids are
(rows, columns).
"""

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

Size = tuple[int, int]


def best_resolution(size: Size, resolutions: Iterable[Sequence[int]]) -> Size:
  """The canvas of LLaVA-NeXT that keeps most pixels of a picture and, of those, wastes least.

  Args:
    size: of the picture. resolutions: (height, width) of the canvases, the first wins ties.
  """
  height, width = size
  best, found = None, (0, 0)
  for h, w in resolutions:
    scale = min(w / width, h / height)
    kept = min(int(width * scale) * int(height * scale), height * width)
    score = (kept, kept - h * w)
    if best is None or score > best:
      best, found = score, (int(h), int(w))
  if best is None:
    raise ValueError("there are no resolutions to choose from (image_grid_pinpoints is empty)")
  return found


def fitted(size: Size, box: Size) -> Size:
  """The size with which a picture fills a canvas as far as its aspect ratio allows (rounds up)."""
  (height, width), (h, w) = size, box
  scale_h, scale_w = h / height, w / width
  if scale_w < scale_h:
    return min(math.ceil(height * scale_w), h), w
  return h, min(math.ceil(width * scale_h), w)


def unpadded(size: Size, grid: Size) -> Size:
  """What is left of a canvas's features when its empty margins are cut off.

  Args:
    size: of the picture. grid: of the features of the canvas that it was fitted into.
  """
  (height, width), (rows, columns) = size, grid
  if width / height > columns / rows:
    filled = int(round(height * (columns / width), 7))
    return rows - (rows - filled) // 2 * 2, columns
  filled = int(round(width * (rows / height), 7))
  return rows, columns - (columns - filled) // 2 * 2


def pooled(grid: Size, side: int, most: int) -> Size:
  """LLaVA-OneVision's `anyres_max_N`: a grid scaled down to about `most` tiles of side x side."""
  rows, columns = grid
  ratio = math.sqrt(rows * columns / (most * side**2))
  return (int(rows // ratio), int(columns // ratio)) if ratio > 1.1 else grid


def aspect_tiles(size: Size, tile: Size, least: int, most: int) -> Size:
  """InternVL's grid: the aspect ratio nearest to the picture's, with least..most tiles.

  Of equal aspect ratios the one with more tiles, as long as the picture has more than half of
  their pixels.

  Args:
    size: of the picture. tile: of a tile.
  """
  height, width = size
  shapes = [
    (columns, rows)
    for columns in range(1, most + 1)
    for rows in range(1, most // columns + 1)
    if columns * rows >= least
  ]
  best, found = math.inf, (1, 1)
  for columns, rows in sorted(shapes, key=lambda s: s[0] * s[1]):
    off = abs(width / height - columns / rows)
    more = off == best and height * width > 0.5 * tile[0] * tile[1] * columns * rows
    if off < best or more:
      best, found = off, (columns, rows)
  return found[1], found[0]


LIMIT = 4096  # Idefics3: no side is ever longer.


def longest_edge(size: Size, edge: int, limit: int = LIMIT) -> Size:
  """Idefics3's size with its longer side `edge` long, the other rounded to an even number."""
  height, width = size
  ratio = width / height
  if width >= height:
    width = edge
    height = int(width / ratio)
    height += height % 2
  else:
    height = edge
    width = int(height * ratio)
    width += width % 2
  return _below(max(height, 1), max(width, 1), limit)


def _below(height: int, width: int, limit: int) -> Size:
  """That size, its longer side at most `limit`."""
  ratio = width / height
  if width >= height and width > limit:
    height, width = int(limit / ratio), limit
  elif height > width and height > limit:
    height, width = limit, int(limit * ratio)
  return max(height, 1), max(width, 1)


def whole_tiles(size: Size, tile: int) -> Size:
  """Idefics3's size in whole tiles, both sides rounded up, the shorter one by the aspect ratio."""
  height, width = size
  ratio = width / height

  def up(side: int) -> int:
    return math.ceil(side / tile) * tile

  if width >= height:
    width = up(width)
    return up(int(width / ratio)), width
  height = up(height)
  return height, up(int(height * ratio))


def split(size: Size, tile: int) -> Size:
  """Idefics3's grid of a picture in whole tiles; (0, 0) = it is one tile, and not split."""
  height, width = size
  if height <= tile and width <= tile:
    return 0, 0
  return max(height // tile, 1), max(width // tile, 1)


def between_edges(size: Size, least: int, most: int) -> Size:
  """Idefics2's size: the longer side at most `most`, then each side at least `least`."""
  height, width = size
  ratio = width / height
  if width >= height and width > most:
    height, width = int(most / ratio), most
  elif height > width and height > most:
    height, width = most, int(most * ratio)
  return max(height, least), max(width, least)


def smart_resize(size: Size, factor: int, least: int, most: int) -> Size:
  """Qwen2-VL's size: sides in multiples of `factor`, least..most pixels, the aspect ratio kept.

  Raises:
    ValueError: one side is more than 200 times the other.
  """
  height, width = size
  if max(size) / min(size) > 200:
    raise ValueError(f"a picture of {height} x {width} is too long: at most 200 to 1")
  h, w = (round(side / factor) * factor for side in size)
  if h * w > most:
    beta = math.sqrt((height * width) / most)
    h, w = (max(factor, math.floor(side / beta / factor) * factor) for side in size)
  elif h * w < least:
    beta = math.sqrt(least / (height * width))
    h, w = (math.ceil(side * beta / factor) * factor for side in size)
  return h, w


class Canvas(NamedTuple):
  """Mllama's canvas: its tiles and the size of the picture in it."""

  rows: int
  columns: int
  height: int
  width: int


def canvas_shapes(most: int) -> list[Size]:
  """Mllama's shapes (rows, columns) of at most `most` tiles; number n + 1 is the n-th."""
  return [(a, b) for a in range(1, most + 1) for b in range(1, most // a + 1)]


def canvas(size: Size, tile: int, most: int) -> Canvas:
  """Mllama's canvas for a picture: the least upscaling, else the least downscaling; then area."""
  height, width = size
  scales = {
    (rows, columns): min(rows * tile / height, columns * tile / width)
    for rows, columns in canvas_shapes(most)
  }
  larger = [scale for scale in scales.values() if scale >= 1]
  chosen = min(larger) if larger else max(scales.values())
  shapes = [shape for shape, scale in scales.items() if scale == chosen]
  rows, columns = min(shapes, key=lambda s: s[0] * s[1])
  h, w = (max(tile, min(side, n * tile)) for side, n in zip(size, (rows, columns), strict=True))
  scale_h, scale_w = h / height, w / width
  if scale_w < scale_h:
    h = min(math.floor(height * scale_w) or 1, h)
  else:
    w = min(math.floor(width * scale_h) or 1, w)
  return Canvas(rows, columns, h, w)


def within(size: Size, box: Size, patch: Size) -> Size:
  """Pixtral's size: scaled down into the box (rounding down), then up to whole patches."""
  height, width = size
  ratio = max(height / box[0], width / box[1])
  if ratio > 1:
    height, width = math.floor(height / ratio), math.floor(width / ratio)
  return ((height - 1) // patch[0] + 1) * patch[0], ((width - 1) // patch[1] + 1) * patch[1]


def largest_side(size: Size, side: int, least: int) -> Size:
  """DeepSeek-VL's size: the longer side becomes `side`, neither one is below `least`."""
  delta = side / max(size)
  height, width = (max(round(s * delta), least) for s in size)
  return height, width


def shrunk(size: Size, box: Size) -> Size:
  """Fuyu's size: scaled down into the box where it is larger, rounding down."""
  height, width = size
  if width <= box[1] and height <= box[0]:
    return size
  scale = min(box[0] / height, box[1] / width)
  return int(height * scale), int(width * scale)


def covering(size: Size, box: Size, patch: Size) -> Size:
  """Fuyu's patches (rows, columns) of a picture that lies in a box."""
  height, width = (
    min(b, math.ceil(s / p) * p) // p for s, b, p in zip(size, box, patch, strict=True)
  )
  return height, width
