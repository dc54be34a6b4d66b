"""Media that a decoder reads by cross-attention: transformers' inputs to slots, and who sees which.

Pictures come row by row here, [B, I, ...], and no token stands for them; a mask says which of them
each token sees. A system's `options["media"]` names one of `READERS`.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from bigvlm.types import Media
from bigvlm.utils import names


def ranges(mask: np.ndarray, label: np.ndarray) -> np.ndarray:
  """What each token sees, as ranges of labels.

  Args:
    mask: bool [B, T, S], True where a token sees a slot. label: int [B, S], 0 for slots that nobody
      sees; the others of a row are 1, 2, ... in order.

  Returns:
    int32 [B, T, 2 * R], see `Text.see`; R is the most that a token needs, at least 1.
  """
  found = []
  for row in range(len(mask)):
    seen = np.pad(mask[row][:, label[row] > 0], ((0, 0), (1, 1))).astype(np.int8)
    edges = np.diff(seen, axis=1)
    (token, first), (_, last) = np.nonzero(edges == 1), np.nonzero(edges == -1)
    nth = np.arange(len(token)) - np.searchsorted(token, token)
    found.append((token, nth, first + 1, last))
  most = max([1, *(int(nth.max(initial=0)) + 1 for _, nth, _, _ in found)])
  out = np.tile(np.asarray([1, 0], np.int32), (*mask.shape[:2], most))
  for row, (token, nth, first, last) in enumerate(found):
    out[row, token, 2 * nth], out[row, token, 2 * nth + 1] = first, last
  return out


def _need(given: Mapping[str, np.ndarray], name: str, shape: tuple[int, ...]) -> np.ndarray:
  if name not in given:
    raise ValueError(f"the inputs have pixel_values, but lack {name}")
  if given[name].shape != shape:
    raise ValueError(f"{name} must be {list(shape)}, not {list(given[name].shape)}")
  return given[name]


def _pixels(x: np.ndarray, kinds: tuple[str, ...], rows: int) -> np.ndarray:
  """Pixels [B, ..., 3, H, W] as float32 slots [B, I, H, W, 3]."""
  axes = ("B", *kinds, "3", "H", "W")
  if x.ndim != len(axes) or x.shape[-3] != 3 or len(x) != rows:
    want = ", ".join(axes).replace("B", str(rows))
    raise ValueError(f"pixel_values must be [{want}], not {list(x.shape)}")
  x = np.moveaxis(x, -3, -1)
  return np.ascontiguousarray(x.reshape(rows, -1, *x.shape[-3:]), np.float32)


def pictures(model: Any, given: Mapping[str, np.ndarray]) -> tuple[dict[str, Media], np.ndarray]:
  """`pixel_values` [B, I, 3, H, W] with `image_attention_mask` [B, T, I]; every row has I pictures,
  and the mask says which are none of it.

  Raises:
    ValueError: inputs that are missing or of another shape.
  """
  rows, length = given["input_ids"].shape
  if "pixel_values" not in given:
    raise ValueError("the inputs lack pixel_values; for text alone they are one picture of zeros")
  x = _pixels(given["pixel_values"], ("I",), rows)
  mask = _need(given, "image_attention_mask", (rows, length, x.shape[1])) != 0
  item = np.tile(np.arange(1, x.shape[1] + 1, dtype=np.int32), (rows, 1))
  return {"image": Media(x, item)}, ranges(mask, item)


def tiles(
  model: Any, given: Mapping[str, np.ndarray]
) -> tuple[dict[str, Media], np.ndarray | None]:
  """`pixel_values` [B, I, tiles, 3, H, W] with the `aspect_ratio_ids` [B, I] and
  `aspect_ratio_mask` [B, I, tiles] of every picture; `cross_attention_mask` [B, T, I, tiles] says
  who sees what, without it all do. Without pictures there is nothing.

  Raises:
    ValueError: inputs that are missing, of another shape or out of range.
  """
  if "pixel_values" not in given:
    for name in _TILED[1:]:
      if name in given:
        raise ValueError(f"the inputs have {name}, but no pixel_values")
    return {}, None
  rows, length = given["input_ids"].shape
  encoder = model.module.encoders["image"]
  x = _pixels(given["pixel_values"], ("I", str(encoder.tiles)), rows)
  size = model.system.image_size
  if x.shape[2:4] != size or given["pixel_values"].shape[2] != encoder.tiles:
    raise ValueError(
      f"pixel_values must be [{rows}, I, {encoder.tiles}, 3, {size[0]}, {size[1]}], not "
      f"{list(given['pixel_values'].shape)}"
    )
  shape = (rows, x.shape[1] // encoder.tiles, encoder.tiles)
  way = _need(given, "aspect_ratio_ids", shape[:2])
  if way.min() < 0 or way.max() >= encoder.ways:
    raise ValueError(f"aspect_ratio_ids must be below {encoder.ways}, but has {way.max()}")
  real = _need(given, "aspect_ratio_mask", shape)
  pos = np.stack([np.broadcast_to(way[:, :, None], shape), real != 0], axis=-1)
  label = np.tile(np.arange(1, x.shape[1] + 1, dtype=np.int32), (rows, 1))
  see = None
  if "cross_attention_mask" in given:
    shape = (rows, length, *shape[1:])
    mask = _need(given, "cross_attention_mask", shape).reshape(rows, length, -1) == 1
    seen = mask.any(axis=1)
    label = np.where(seen, np.cumsum(seen, axis=1), 0).astype(np.int32)
    see = ranges(mask, label)
  pos = pos.reshape(rows, -1, 2).astype(np.int32)
  return {"image": Media(x, label, None, pos)}, see


class Reader(NamedTuple):
  """How a kind of media is read.

  Attributes:
    inputs: names of transformers' inputs.
    read: (model, inputs) -> media and `Text.see`.
    states: name of the output that is what the decoder sees.
    by_row: whether that is [B, I, N, D] with I slots a row, or [B * I, N, D].
  """

  inputs: tuple[str, ...]
  read: Callable[[Any, Mapping[str, np.ndarray]], tuple[dict[str, Media], np.ndarray | None]]
  states: str
  by_row: bool


_TILED = ("pixel_values", "aspect_ratio_ids", "aspect_ratio_mask", "cross_attention_mask")
READERS = {
  "pictures": Reader(
    ("pixel_values", "image_attention_mask"), pictures, "image_hidden_states", True
  ),
  "tiles": Reader(_TILED, tiles, "cross_attention_states", False),
}


def reader(model: Any) -> Reader:
  """The reader of a model's media.

  Raises:
    ValueError: `options["media"]` is not in the table.
  """
  return names.lookup("media", model.system.options.get("media", ""), READERS)
