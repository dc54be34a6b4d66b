"""Readers of packed patches: pictures and videos of any shape, each as its patches in a row."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from bigvlm.hub import media
from bigvlm.hub.media import Picture, Reader
from bigvlm.models.vision import packed
from bigvlm.processing import positions as positions_lib
from bigvlm.types import Item

# Name of the inputs of a kind of media, of its grids, sides of merged squares, its placeholder.
_KINDS = (
  ("pixel_values", "image_grid_thw", "image_merge_sizes", "image_token"),
  ("pixel_values_videos", "video_grid_thw", "video_merge_sizes", "video_token"),
)


def grids(model: Any, given: Mapping[str, np.ndarray]) -> list[Picture]:
  """Patches of all pictures one after the other, [N, 3 * T * P * P], with grids int [n, 3].

  The same for videos under their own names. An encoder that merges squares by itself
  (`Packed.merges`) has their sides beside the grids, and may have a mask of the tokens of videos
  that stay.

  Raises:
    ValueError: grids that are not as many patches, or inputs without the others they need.
  """
  encoder, options, out = model.module.encoders["image"], model.system.options, []
  for name, grid_name, side_name, token in _KINDS:
    if name not in given:
      continue
    sides = None
    for needed in (grid_name, *((side_name,) if encoder.merges > 1 else ())):
      if needed not in given:
        raise ValueError(f"the inputs have {name} but lack {needed}")
    shapes = given[grid_name].reshape(-1, 3).tolist()
    if encoder.merges > 1:
      sides = given[side_name].reshape(-1).tolist()
      if len(sides) != len(shapes) or not all(0 < side <= encoder.merges for side in sides):
        raise ValueError(f"{side_name} must be {len(shapes)} numbers up to {encoder.merges}")
    x, counts = _patches(encoder, given[name], name), [t * h * w for t, h, w in shapes]
    if sum(counts) != len(x):
      raise ValueError(f"{name} has {len(x)} patches, but {grid_name} says {sum(counts)}")
    ends = np.cumsum(counts)
    for n, (grid, end) in enumerate(zip(shapes, ends, strict=True)):
      side = 1 if sides is None else sides[n]
      pos = packed.places(tuple(grid), encoder.block if sides is None else side)
      if sides is not None:
        pos = np.concatenate([pos, np.full_like(pos[:, :1], side)], axis=1)
      item = Item(0, tuple(grid), video=token == "video_token", merge=side)
      patches = x[end - counts[n] : end]
      out.append(Picture({"image": patches}, item, options[token], {"image": pos}))
  kept = given.get("video_compression_mask")
  return out if kept is None else _kept(out, kept.reshape(-1) > 0)


def _patches(encoder: Any, x: np.ndarray, name: str) -> np.ndarray:
  """Patches [N, 3 * T * P * P] with channels last."""
  shape = (3, encoder.frames, encoder.patch, encoder.patch)
  if x.ndim != 2 or x.shape[1] != np.prod(shape):
    raise ValueError(f"{name} must be [N, {np.prod(shape)}] patches, not {list(x.shape)}")
  x = x.reshape(-1, *shape).transpose(0, 2, 3, 4, 1)
  return np.ascontiguousarray(x, dtype=np.float32).reshape(len(x), -1)


def _kept(pictures: list[Picture], mask: np.ndarray) -> list[Picture]:
  """The pictures with the tokens of their videos that a mask over all of those leaves."""
  out, at = [], 0
  for picture in pictures:
    if picture.item.video:
      (t, h, w), side = picture.item.grid, picture.item.merge
      count = t * (h // side) * (w // side)
      keep = tuple(np.flatnonzero(mask[at : at + count]).tolist())
      picture, at = picture._replace(item=picture.item._replace(keep=keep)), at + count
    out.append(picture)
  if at != len(mask):
    raise ValueError(f"video_compression_mask has {len(mask)} entries for {at} tokens of videos")
  return out


def sizes(model: Any, given: Mapping[str, np.ndarray]) -> list[Picture]:
  """`pixel_values` [n, 3, H, W], padded below and on the right, with `image_sizes` int [n, 2].

  Raises:
    ValueError: sizes that do not fit.
  """
  if "pixel_values" not in given:
    return []
  x, encoder = media.channels_last(given["pixel_values"]), model.module.encoders["image"]
  found = given.get("image_sizes", np.tile(x.shape[1:3], (len(x), 1))).reshape(-1, 2)
  if len(found) != len(x) or (found > x.shape[1:3]).any():
    raise ValueError(f"image_sizes {found.tolist()} are not of pixel_values {list(x.shape)}")
  out, patch = [], encoder.patch
  for pixels, (height, width) in zip(x, found.tolist(), strict=True):
    h, w = encoder.grid(height, width)
    if min(h, w) < 1 or (h, w) != (height // patch, width // patch):
      side = patch * encoder.block
      raise ValueError(f"image_sizes has {height}x{width}, which is not whole squares of {side}")
    pos = packed.places((1, h, w), encoder.block)
    cut = pixels[: h * patch, : w * patch].reshape(h, patch, w, patch, 3).transpose(0, 2, 1, 3, 4)
    patches = cut.reshape(h * w, -1)[pos[:, 1] * w + pos[:, 2]]
    item = Item(0, (1, h, w), size=(height, width))
    token = model.system.options["image_token"]
    out.append(Picture({"image": patches}, item, token, {"image": pos}))
  return out


def positions(
  model: Any, given: Mapping[str, np.ndarray], tokens: np.ndarray, pictures: list[Picture]
) -> np.ndarray | None:
  """Positions int32 [B, T, 3] of a model with M-RoPE; None where the plain ones do.

  Those of the inputs, [3 or 4, B, T], if there are such; a fourth axis, in front, is the plain one.

  Raises:
    ValueError: kinds of tokens that are not what the placeholders say.
  """
  found = given.get("position_ids")
  if found is not None:
    if found.ndim == 2:
      return None
    if found.shape not in ((3, *tokens.shape), (4, *tokens.shape)):
      raise ValueError(f"position_ids is {list(found.shape)}, not {[3, *tokens.shape]}")
    packed_rows = len(found) == 4 and (np.diff(found[0]) != 1).any()
    if packed_rows and given.get("attention_mask") is None:
      raise ValueError("position_ids that jump (packed rows) need an attention_mask beside them")
    return np.moveaxis(found[-3:], 0, -1).astype(np.int32)
  if not pictures:
    return None
  options, connector = model.system.options, model.module.connector
  kinds = np.zeros(tokens.shape, np.int32)
  spans: dict[int, list[positions_lib.Span]] = {1: [], 2: []}
  for kind, name in ((1, "image_token"), (2, "video_token")):
    kinds[tokens == options[name]] = kind
  types = given.get("mm_token_type_ids")
  if types is not None and (types.shape != tokens.shape or (types != kinds).any()):
    raise ValueError("mm_token_type_ids are not 1 at the image and 2 at the video placeholders")
  seconds = given.get("second_per_grid_ts")
  videos = sum(picture.item.video for picture in pictures)
  if seconds is not None and seconds.size < videos:
    raise ValueError(f"second_per_grid_ts has {seconds.size} entries for {videos} videos")
  for picture in pictures:
    kind, (t, h, w) = 2 if picture.item.video else 1, picture.item.grid
    interval = 1
    if kind == 2 and "tokens_per_second" in options:
      interval = options["tokens_per_second"]
      interval = interval if seconds is None else interval * seconds.reshape(-1)[len(spans[2])]
    side = connector.merge
    spans[kind].append(positions_lib.Span((t, h // side, w // side), interval))
  return positions_lib.mrope(kinds, spans, given.get("attention_mask"))


_GRIDS = ("pixel_values", "image_grid_thw", "pixel_values_videos", "video_grid_thw")
_SIDES = ("image_merge_sizes", "video_merge_sizes", "video_compression_mask")
READERS = {
  "grids": Reader((*_GRIDS, "mm_token_type_ids", "second_per_grid_ts"), grids),
  "merged_grids": Reader((*_GRIDS, *_SIDES, "mm_token_type_ids"), grids),
  "sizes": Reader(("pixel_values", "image_sizes"), sizes),
}
