"""Decoders: transformers' inputs to a batch, forward and greedy generation.

A forward pass gives logits at every position, generation reads the last one. Three tables by
kind of inputs: `BATCHES`, (model, inputs, last) -> Batch; `KINDS`, (model, inputs) -> outputs;
`GENERATORS`, (model, inputs, max_new_tokens) -> ids.
"""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from bigvlm import generate as generation
from bigvlm.hub import encdec_inputs, fields, inputs
from bigvlm.types import Batch, Item, MaskSpec, Media, Text

# `labels` are for the reference's loss; a text model's reference reads no token types.
_TEXT = ("input_ids", "attention_mask", "position_ids", "labels", "token_type_ids")


def lm_batch(model: Any, given: Mapping[str, Any], last: bool) -> Batch:
  """A text model's batch.

  Args:
    model: `HubModel`. given: inputs of transformers. last: read the last column only.

  Raises:
    ValueError: an input that is missing, unknown, of another shape or out of range.
  """
  given = inputs.take(given, *_TEXT)
  tokens = inputs.ids(_need(given, "input_ids"), model.module.decoder.vocab)
  return Batch(_text(given, tokens, np.ones_like(tokens), last), {})


def vlm_batch(model: Any, given: Mapping[str, Any], last: bool) -> Batch:
  """A batch with images in the places of a placeholder token; see `lm_batch`.

  Raises:
    ValueError: also images and placeholders that do not match; names the row.
  """
  given = inputs.take(given, *_TEXT, "pixel_values")
  options, decoder = model.system.options, model.module.decoder
  tokens = _need(given, "input_ids")
  image = tokens == options["image_token"]
  # The reference's placeholder may be no row of the table.
  tokens = inputs.ids(np.where(image, 0, tokens), decoder.vocab)
  media, at = _images(model, image, given.get("pixel_values"))
  types = given.get("token_type_ids")
  mask = _like(tokens, given, "attention_mask")
  jumps = np.diff(given.get("position_ids", np.zeros((1, 0))), axis=-1) != 1
  if mask is None and not last and jumps.any():
    raise ValueError("position_ids that jump (packed rows) need an attention_mask beside them")
  if types is None:
    ar = np.ones_like(tokens)
  else:
    ar = _BLOCKS[options["types"]](_like(tokens, given, "token_type_ids"), mask)
  text = _text(given, tokens, ar, last, options.get("first_position", 0))
  return Batch(text.replace(media_index=at), media)


BATCHES = {"lm": lm_batch, "vlm": vlm_batch, "encdec": encdec_inputs.batch}


def _need(given: Mapping[str, np.ndarray], name: str) -> np.ndarray:
  if name not in given:
    raise ValueError(f"the inputs lack {name}; they have {', '.join(given) or 'nothing'}")
  return given[name]


def _like(tokens: np.ndarray, given: Mapping[str, np.ndarray], name: str) -> np.ndarray | None:
  """An input of the shape of the tokens, or None."""
  x = given.get(name)
  if x is not None and x.shape != tokens.shape:
    raise ValueError(f"{name} is {list(x.shape)}, but input_ids is {list(tokens.shape)}")
  return x


def _prefix(types: np.ndarray, mask: np.ndarray | None) -> np.ndarray:
  """PaliGemma's token types: 0 = prefix, which sees itself, anything else a causal suffix."""
  real = np.ones(types.shape, bool) if mask is None else mask > 0
  suffix = (types != 0) & real
  late = (types == 0) & real & (np.cumsum(suffix, axis=1) > 0)
  if late.any():
    row, at = np.argwhere(late)[0]
    raise ValueError(f"token_type_ids[{row}, {at}] is a prefix (0) after a suffix has begun")
  return suffix.astype(np.int32)


def _image_blocks(types: np.ndarray, mask: np.ndarray | None) -> np.ndarray:
  """Gemma 3's token types: a run of 1 sees itself, all else is causal."""
  image = types == 1
  before = np.pad(image, ((0, 0), (1, 0)))[:, :-1]
  return (~(image & before)).astype(np.int32)


_BLOCKS = {"prefix": _prefix, "images": _image_blocks}


def _text(
  given: Mapping[str, np.ndarray], tokens: np.ndarray, ar: np.ndarray, last: bool, first: int = 0
) -> Text:
  """Text without media. Windows count columns, padding included, as the reference's do."""
  rows, length = tokens.shape
  column = np.broadcast_to(np.arange(length, dtype=np.int32), tokens.shape)
  mask = _like(tokens, given, "attention_mask")
  positions = given.get("position_ids")
  # Padding looks at what a real token in its place would see; nothing sees it.
  segment = np.ones_like(tokens) if mask is None else np.where(mask > 0, 1, -1)
  if positions is None and last and mask is not None:
    # The reference numbers real tokens when it generates, and goes on from the last column's.
    positions = np.where(mask > 0, np.cumsum(mask > 0, axis=1) - 1, 0).astype(np.int32)
    positions = positions + np.int32(first)
  elif positions is None:
    positions = column + np.int32(first)
  else:
    if positions.ndim != 2 or positions.shape[0] not in (1, rows) or positions.shape[1] != length:
      raise ValueError(f"position_ids is {list(positions.shape)}, not {[rows, length]}")
    positions = np.broadcast_to(positions, tokens.shape).astype(np.int32)
  read = column[:, -1:] if last else column
  spec = MaskSpec(segment.astype(np.int32), np.cumsum(ar, axis=1, dtype=np.int32), column)
  return Text(tokens, spec, positions, np.full_like(tokens, -1), read)


def _images(
  model: Any, image: np.ndarray, pixels: np.ndarray | None
) -> tuple[dict[str, Media], np.ndarray]:
  """Media of a batch and, for every token, the row of the connector's output it stands for.

  Args:
    model: `HubModel`. image: bool [B, T], the placeholders. pixels: [n, 3, H, W] of all rows, in
      reading order, or None.
  """
  at = np.full(image.shape, -1, np.int32)
  counts = image.sum(axis=1)
  if pixels is None:
    if counts.any():
      row = int(counts.argmax())
      raise ValueError(f"input_ids row {row} has image placeholders, but there are no pixel_values")
    return {}, at
  flat = inputs.media(pixels).pixels[:, 0]
  grid = model.module.encoders["image"].grid(*flat.shape[1:3])
  size = len(model.module.connector.rows([Item(0, (1, *grid))])[0])
  wanted, rest = np.divmod(counts, size)
  if rest.any():
    row = int(rest.argmax())
    raise ValueError(
      f"input_ids row {row} has {counts[row]} image placeholders, but an image takes {size}"
    )
  ends = np.cumsum(wanted)
  if ends[-1] != len(flat):
    row = int(np.searchsorted(ends, len(flat) + 1)) if ends[-1] > len(flat) else len(counts) - 1
    raise ValueError(
      f"pixel_values has {len(flat)} images, but input_ids has placeholders for {ends[-1]} "
      f"({size} tokens each): they do not match in row {row}"
    )
  slots = max(int(wanted.max()), 1)
  x = np.zeros((len(counts), slots, *flat.shape[1:]), np.float32)
  item = np.zeros((len(counts), slots), np.int32)
  rows = np.concatenate(model.module.connector.rows([Item(n, (1, *grid)) for n in range(slots)]))
  for row, n in enumerate(wanted):
    x[row, :n] = flat[ends[row] - n : ends[row]]
    item[row, :n] = np.arange(1, n + 1)
    at[row, image[row]] = rows[: counts[row]]
  return {"image": Media(x, item)}, at


def lm(model: Any, given: Mapping[str, Any]) -> dict[str, np.ndarray]:
  """A text model: `logits` [B, T, V]."""
  return {"logits": np.asarray(model.apply(lm_batch(model, given, False)).logits)}


def vlm(model: Any, given: Mapping[str, Any]) -> dict[str, np.ndarray]:
  """A vision-language model: `logits` [B, T, V] and, with images, `image_features` [N, D]."""
  out = model.apply(vlm_batch(model, given, False))
  found = {"logits": np.asarray(out.logits)}
  if out.soft is not None:
    found["image_features"] = np.asarray(out.soft.x)[np.asarray(out.soft.item) > 0]
  return found


def ends(model: Any) -> tuple[tuple[int, ...], int | None]:
  """Ids that end a row, and what it is filled with afterwards.

  From `generation_config.json` if that names an end, else from the config; without a pad id the
  first end stands for it.
  """
  eos, pad = model.system.options.get("eos", ()), model.system.options.get("pad")
  path = None if model.directory is None else model.directory / "generation_config.json"
  if path is not None and path.is_file():
    cfg = fields.read_json(path)
    if cfg.get("eos_token_id") is not None:
      eos, pad = fields.ids(cfg["eos_token_id"]), cfg.get("pad_token_id")
  return eos, pad if pad is not None or not eos else eos[0]


def trim(ids: np.ndarray, eos: tuple[int, ...]) -> np.ndarray:
  """Cuts columns [B, n] after the one in which the last row ends."""
  end = np.isin(ids, eos)
  steps = np.where(end.any(axis=1), end.argmax(axis=1) + 1, ids.shape[1])
  return ids[:, : steps.max(initial=1)]


def greedy(model: Any, given: Mapping[str, Any], max_new_tokens: int) -> np.ndarray:
  """Continues every row of a model by its likeliest tokens, int32 [B, n]."""
  eos, pad = ends(model)
  tokens = given.get("input_ids")
  if given.get("attention_mask") is None and tokens is not None and pad not in (None, *eos):
    # Without a mask the reference takes pad ids for padding, unless they also end a row.
    given = dict(given) | {"attention_mask": (np.asarray(tokens) != pad).astype(np.int32)}
  batch = BATCHES[model.system.inputs](model, given, True)
  module, params, batch = model.decoding(batch)
  ids = generation.generate(
    module,
    params,
    batch,
    jax.random.key(0),
    max_new_tokens=max_new_tokens,
    eos=eos,
    pad=0 if pad is None else pad,
  )
  return trim(np.asarray(ids), eos)


KINDS = {"lm": lm, "vlm": vlm, "encdec": encdec_inputs.forward}
GENERATORS = {"lm": greedy, "vlm": greedy, "encdec": greedy}
