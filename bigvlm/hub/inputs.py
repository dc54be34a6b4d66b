"""From the inputs of transformers' processors to a batch, and from outputs to transformers' names.

All arrays are NumPy. A kind is a function (model, inputs) -> outputs; `KINDS` is the table.
"""

import copy
import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from bigvlm.types import Batch, MaskSpec, Media, Text
from bigvlm.utils import names

# What a forward pass of transformers may be given and has no meaning here.
_IGNORED = ("interpolate_pos_encoding", "return_dict", "use_cache", "return_loss")


def numbers(inputs: Mapping[str, Any]) -> dict[str, np.ndarray | None]:
  """What a call was given as NumPy arrays; None stays.

  Raises:
    ValueError: no mapping, or a value that is no array of numbers; names it.
  """
  if not isinstance(inputs, Mapping):
    raise ValueError(f"the inputs are a dict of arrays, not a {type(inputs).__name__}")
  out: dict[str, np.ndarray | None] = {}
  for key, value in inputs.items():
    try:
      out[key] = None if value is None else np.asarray(value)
    except ValueError:
      raise ValueError(f"{key} has rows of different lengths") from None
    x = out[key]
    if x is not None and x.dtype.kind not in "biufV":  # V: of ml_dtypes.
      raise ValueError(f"{key} is no array of numbers, but of {x.dtype}")
  return out


def take(inputs: Mapping[str, Any], *known: str) -> dict[str, np.ndarray]:
  """The inputs that are there, as NumPy arrays.

  Raises:
    ValueError: one that this kind of model does not know.
  """
  out = {}
  for key, value in inputs.items():
    if key not in known and key not in _IGNORED:
      raise ValueError(names.unknown("input", key, known))
    if value is not None and key not in _IGNORED:
      out[key] = np.asarray(value)
  return out


def media(pixels: np.ndarray) -> Media:
  """`pixel_values` [B, 3, H, W] as one slot a row.

  Raises:
    ValueError: another shape, or no image.
  """
  if pixels.ndim != 4 or pixels.shape[1] != 3 or not len(pixels):
    raise ValueError(f"pixel_values must be [B, 3, H, W], not {list(pixels.shape)}")
  x = np.ascontiguousarray(pixels.transpose(0, 2, 3, 1))[:, None].astype(np.float32)
  return Media(x, np.ones(x.shape[:2], np.int32))


def patches(pixels: np.ndarray, shapes: np.ndarray, mask: np.ndarray | None, patch: int) -> Media:
  """`pixel_values` [B, N, P * P * 3] of NaFlex, padded, as one picture a row.

  Args:
    pixels: patches. shapes: `spatial_shapes` [B, 2], rows and columns of patches.
    mask: `pixel_attention_mask` [B, N], 0 = padding; None = none.
    patch: P.

  Raises:
    ValueError: arrays of other shapes, or a row with more patches than N.
  """
  if pixels.ndim != 3 or pixels.shape[2] != patch * patch * 3:
    want = f"[B, N, {patch * patch * 3}]"
    raise ValueError(f"pixel_values must be {want} patches, not {list(pixels.shape)}")
  rows, count = pixels.shape[:2]
  mask = np.ones((rows, count), np.int32) if mask is None else (mask > 0).astype(np.int32)
  for name, x, want in (
    ("spatial_shapes", shapes, (rows, 2)),
    ("pixel_attention_mask", mask, (rows, count)),
  ):
    if x.shape != want:
      raise ValueError(f"{name} must be {list(want)}, not {list(x.shape)}")
  pos = np.zeros((rows, count, 2), np.int32)
  for row, (height, width) in enumerate(shapes.tolist()):
    if not 0 < height * width <= count:
      raise ValueError(f"spatial_shapes[{row}] is {height}x{width}, but there are {count} patches")
    pos[row, : height * width] = np.stack(np.mgrid[:height, :width], axis=-1).reshape(-1, 2)
  return Media(None, mask, pixels.astype(np.float32), pos)


def _image_inputs(model: Any) -> tuple[str, ...]:
  """Names of the inputs that are images: patches where `options.patches` says so."""
  patched = ("spatial_shapes", "pixel_attention_mask")
  return ("pixel_values", *(patched if model.system.options.get("patches") else ()))


def _images(model: Any, given: Mapping[str, np.ndarray]) -> dict[str, Media]:
  """The media of `_image_inputs`."""
  for key in _image_inputs(model)[:2]:
    if key not in given:
      raise ValueError(f"the inputs lack {key}")
  if not model.system.options.get("patches"):
    return {"image": media(given["pixel_values"])}
  mask = given.get("pixel_attention_mask")
  patch = model.module.encoders["image"].patch
  return {"image": patches(given["pixel_values"], given["spatial_shapes"], mask, patch)}


def ids(tokens: np.ndarray, vocab: int, name: str = "input_ids") -> np.ndarray:
  """Token ids as int32 [B, T].

  Raises:
    ValueError: not of that shape, empty, not integers, or an id outside the vocabulary (names row
      and place).
  """
  if tokens.ndim != 2 or not tokens.size:
    raise ValueError(f"{name} must be [B, T], not {list(tokens.shape)}")
  if tokens.dtype.kind not in "iu":
    raise ValueError(f"{name} must be integers, not {tokens.dtype}")
  bad = (tokens < 0) | (tokens >= vocab)
  if bad.any():
    row, at = np.argwhere(bad)[0]
    raise ValueError(
      f"{name}[{row}, {at}] is {tokens[row, at]}, but the vocabulary has {vocab} ids"
    )
  return tokens.astype(np.int32)


def text(tokens: np.ndarray, mask: np.ndarray | None, ar: np.ndarray | int, read=None) -> Text:
  """A `Text` without media.

  Args:
    tokens: int32 [B, T]. mask: [B, T], 0 = padding, on whichever side; None = none.
    ar: [B, T] or a number, 1 where a token must not be seen by those before it.
    read: int32 [B, K]; None = every position.

  Raises:
    ValueError: a mask of another shape.
  """
  rows, length = tokens.shape
  if mask is not None and mask.shape != tokens.shape:
    raise ValueError(f"attention_mask is {list(mask.shape)}, but input_ids is {list(tokens.shape)}")
  mask = np.ones_like(tokens) if mask is None else (mask > 0).astype(np.int32)
  order = np.maximum(np.cumsum(mask, axis=1) - 1, 0).astype(np.int32)
  block = np.cumsum(np.broadcast_to(ar, tokens.shape) * mask, axis=1).astype(np.int32)
  if read is None:
    read = np.broadcast_to(np.arange(length, dtype=np.int32), (rows, length))
  none = np.full_like(tokens, -1)
  return Text(tokens, MaskSpec(mask, block, order), order, none, np.asarray(read, np.int32))


def arrays(text: Text, prefix: str = "") -> dict[str, np.ndarray]:
  """The first row of a text under the names of `types.to_batch`, with `prefix` in front."""
  found = dict(
    tokens=text.tokens,
    segment=text.mask.segment,
    block=text.mask.block,
    order=text.mask.order,
    positions=text.positions,
    media_index=text.media_index,
    read=text.read,
    see=text.see,
  )
  return {prefix + k: np.asarray(v[0]) for k, v in found.items() if v is not None}


def _resizing(model: Any, inputs: Mapping[str, Any]) -> Any:
  """The model for images to whose size its table is resized, where that was asked for: the
  reference then takes the table for a square one, whatever shape the config's images have.

  Raises:
    ValueError: a table whose number of rows is not a square.
  """
  asked, tower = inputs.get("interpolate_pos_encoding"), model.module.encoders["image"]
  height, width = tower.grid(*model.system.image_size)
  if asked is None or not np.all(asked) or height == width:
    return model
  side = math.isqrt(height * width)
  if side**2 != height * width:
    raise ValueError(
      f"interpolate_pos_encoding: the table is of {height}x{width} positions, whose number is not "
      "a square; the reference cannot resize such a table"
    )
  found = copy.copy(model)
  found.system = dataclasses.replace(model.system, image_size=(side * tower.patch,) * 2)
  return found


def encoder(model: Any, inputs: Mapping[str, Any]) -> dict[str, np.ndarray]:
  """An encoder alone: `last_hidden_state` [B, N, D] and `pooler_output` [B, D], or `logits`."""
  given = take(inputs, *_image_inputs(model))
  out = _resizing(model, inputs).apply(Batch(None, _images(model, given)))
  pooled = out.heads.get("image")
  if model.system.options.get("classifier"):
    return {"logits": np.asarray(pooled)}
  found = {"last_hidden_state": np.asarray(out.feats["image"].x[:, 0])}
  return found if pooled is None else found | {"pooler_output": np.asarray(pooled)}


def dual(model: Any, inputs: Mapping[str, Any]) -> dict[str, np.ndarray]:
  """A dual encoder: embeddings and logits of every image with every text, in any numbers."""
  given = take(inputs, "input_ids", "attention_mask", "position_ids", *_image_inputs(model))
  if not {"pixel_values", "input_ids"} & set(given):
    raise ValueError("the inputs lack both pixel_values and input_ids")
  out = {}
  if "pixel_values" in given:
    heads = model.apply(Batch(None, _images(model, given))).heads
    out["image_embeds"] = np.asarray(heads["image"])
  if "input_ids" in given:
    tokens = ids(given["input_ids"], model.module.text.vocab)
    length = model.module.text.length
    if tokens.shape[1] > length:
      raise ValueError(f"input_ids has {tokens.shape[1]} tokens, the position table only {length}")
    mask = given.get("attention_mask")
    module = model.module
    if mask is not None and not mask.all():
      module = module.clone(text=module.text.clone(masked=True))
    positions = given.get("position_ids")
    if positions is not None and (positions != np.arange(tokens.shape[1])).any():
      raise ValueError("position_ids must count up from 0: the text tower reads its table in order")
    causal = model.system.options.get("causal", False)
    if causal == "masked":  # Only where there is a mask, as the reference has it.
      causal = mask is not None
    heads = model.apply(Batch(text(tokens, mask, int(causal)), {}), module).heads
    out["text_embeds"] = np.asarray(heads["text"])
  if len(out) == 2:
    scale, bias = float(heads["scale"]), float(heads["bias"])
    logits = out["text_embeds"] @ out["image_embeds"].T * np.float32(scale) + np.float32(bias)
    out |= {"logits_per_text": logits, "logits_per_image": logits.T}
  return out


KINDS = {"encoder": encoder, "dual": dual}
