"""Readers of pictures and videos that come with a question for the connector."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from bigvlm.hub import inputs, media
from bigvlm.types import Item

INPUTS = ("pixel_values", "qformer_input_ids", "qformer_attention_mask")


def pictures(model: Any, given: Mapping[str, np.ndarray]) -> list[media.Picture]:
  """`pixel_values` [n, 3, H, W] and a question for every one, see `_asked`."""
  if INPUTS[0] not in given:
    return []
  x = media.channels_last(given[INPUTS[0]])
  return _asked(model, given, x[:, None], "image_token")


def frames(model: Any, given: Mapping[str, np.ndarray]) -> list[media.Picture]:
  """`pixel_values` [n, F, 3, H, W], videos of F frames, and a question for every one.

  Raises:
    ValueError: also pixels of another shape.
  """
  if INPUTS[0] not in given:
    return []
  x = given[INPUTS[0]]
  if x.ndim != 5:
    raise ValueError(f"pixel_values must be [n, frames, 3, H, W], not {list(x.shape)}")
  flat = media.channels_last(x.reshape(-1, *x.shape[2:]))
  return _asked(model, given, flat.reshape(*x.shape[:2], *flat.shape[1:]), "video_token")


def _asked(
  model: Any, given: Mapping[str, np.ndarray], x: np.ndarray, token: str
) -> list[media.Picture]:
  """Pictures of pixels [n, F, H, W, 3], each with its row of `qformer_input_ids` [n, T].

  Raises:
    ValueError: no questions, not as many, or ids and a mask that do not fit.
  """
  name, mask_name = INPUTS[1:]
  if name not in given:
    raise ValueError(f"the inputs have pixel_values but lack {name}")
  former, (count, slots) = model.module.connector, x.shape[:2]
  ids = inputs.ids(given[name], former.vocab, name)
  mask = given.get(mask_name, np.ones_like(ids))
  if len(ids) != count:
    raise ValueError(f"{name} has {len(ids)} rows, but there are {count} images")
  if mask.shape != ids.shape:
    raise ValueError(f"{mask_name} is {list(mask.shape)}, but {name} is {list(ids.shape)}")
  if ids.shape[1] > former.length:
    raise ValueError(f"{name} has {ids.shape[1]} tokens, the position table only {former.length}")
  texts = dict(query_tokens=ids, query_mask=(mask > 0).astype(np.int32))
  grid = model.module.encoders[former.source].grid(*x.shape[2:4])
  item = Item(0, (slots, *grid), size=x.shape[2:4])
  return [
    media.Picture(
      {former.source: x[n]},
      item,
      model.system.options[token],
      extra={k: np.repeat(v[n : n + 1], slots, axis=0) for k, v in texts.items()},
    )
    for n in range(count)
  ]


READERS = {
  "asked": media.Reader(INPUTS, pictures),
  "asked_frames": media.Reader(INPUTS, frames),
}
