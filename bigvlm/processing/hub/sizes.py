"""Sizes that images become, and the cutting and padding of arrays [H, W, C]."""

import math
from collections.abc import Mapping, Sequence

import numpy as np


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
  if wanted.get("max_height") and wanted.get("max_width"):
    scale = min(wanted["max_height"] / size[0], wanted["max_width"] / size[1])
    return int(size[0] * scale), int(size[1] * scale)
  raise ValueError(
    f"{name}: size {dict(wanted)} is neither height and width, shortest_edge nor max_height and "
    "max_width"
  )


def box(wanted: Mapping[str, int], name: str) -> tuple[int, int]:
  """(height, width) of a size that does not depend on the image."""
  if wanted.get("height") and wanted.get("width"):
    return wanted["height"], wanted["width"]
  if wanted.get("shortest_edge"):
    return wanted["shortest_edge"], wanted["shortest_edge"]
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


def center_crop(x: np.ndarray, size: Mapping[str, int] | None) -> np.ndarray:
  """The middle of [H, W, C]; what is smaller is laid into zeros.

  Raises:
    ValueError: a size without height and width.
  """
  if not (size and size.get("height") and size.get("width")):
    raise ValueError(f"do_center_crop needs a crop_size with height and width, not {size}")
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


def square(x: np.ndarray, mean: Sequence[float]) -> np.ndarray:
  """uint8 [S, S, 3]: the image in the middle of a square of its longer side, in a mean's colour."""
  height, width = x.shape[:2]
  side = max(height, width)
  if height == width:
    return x
  out = np.empty((side, side, 3), x.dtype)
  out[:] = [int(m * 255) for m in mean]
  top, left = (side - height) // 2, (side - width) // 2
  out[top : top + height, left : left + width] = x
  return out


def filled(
  pixels: Sequence[np.ndarray], size: Mapping[str, int] | None, name: str
) -> list[np.ndarray]:
  """Arrays [3, h, w] with zeros on the right and below.

  Args:
    pixels: the arrays. size: {"height", "width"} they get; None = the largest of them.
    name: for the message.

  Raises:
    ValueError: one that is larger than that.
  """
  height, width = (max(side) for side in zip(*(x.shape[1:] for x in pixels), strict=True))
  wanted = (height, width) if size is None else box(size, name)
  if height > wanted[0] or width > wanted[1]:
    raise ValueError(f"{name}: images of {height}x{width} do not fit into pad_size {dict(size)}")
  pads = [[(0, w - have) for w, have in zip(wanted, x.shape[1:], strict=True)] for x in pixels]
  return [np.pad(x, [(0, 0), *pad]) for x, pad in zip(pixels, pads, strict=True)]


def stacked(rows: Sequence[Sequence[np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
  """Images [3, h, w] of several rows in one array, zeros where there is none.

  Returns:
    float32 [B, I, 3, H, W] and int64 [B, I, H, W], 1 where there is a pixel.
  """
  every = [x.shape[1:] for row in rows for x in row]
  height, width = (max(side) for side in zip(*every, strict=True))
  shape = (len(rows), max(map(len, rows)))
  pixels = np.zeros((*shape, 3, height, width), np.float32)
  mask = np.zeros((*shape, height, width), np.int64)
  for b, row in enumerate(rows):
    for i, x in enumerate(row):
      h, w = x.shape[1:]
      pixels[b, i, :, :h, :w] = x
      mask[b, i, :h, :w] = 1
  return pixels, mask


def longest(groups: Sequence[np.ndarray]) -> np.ndarray:
  """Arrays [n, ...] of several lengths as one [N, max n, ...], filled up with zeros."""
  most = max(len(x) for x in groups)
  out = np.zeros((len(groups), most, *groups[0].shape[1:]), groups[0].dtype)
  for n, x in enumerate(groups):
    out[n, : len(x)] = x
  return out
