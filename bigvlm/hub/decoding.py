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
from bigvlm.hub import choosing, encdec_inputs, fields, inputs, memory_media, packed_media, readers
from bigvlm.hub import media as media_lib
from bigvlm.types import Batch, MaskSpec, Text

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
  return Batch(_text(given, tokens, np.ones_like(tokens), last, model.system.options), {})


def vlm_batch(model: Any, given: Mapping[str, Any], last: bool) -> Batch:
  """A batch with media in the places of their placeholders; see `lm_batch`.

  Raises:
    ValueError: also pictures and placeholders that do not match; names the row.
  """
  return _placed(model, given, last)[0]


def _placed(
  model: Any, given: Mapping[str, Any], last: bool
) -> tuple[Batch, list[media_lib.Picture], media_lib.Placed]:
  reader = readers.reader(model)
  options, decoder = model.system.options, model.module.decoder
  encodes = hasattr(decoder, "encode")
  given = inputs.take(given, *(encdec_inputs.INPUTS if encodes else _TEXT), *reader.inputs)
  tokens = _need(given, "input_ids")
  # The reference's placeholder may be no row of the table.
  holes = np.isin(tokens, media_lib.placeholders(model))
  words = inputs.ids(np.where(holes, 0, tokens), decoder.vocab)
  pictures = reader.read(model, given)
  placed = media_lib.place(model, tokens, pictures)
  if encodes:
    text = encdec_inputs.encoder(words, given).replace(media_index=placed.index)
    target = encdec_inputs.target(model, given, len(words), last)
    return Batch(text, placed.media, extra=placed.extra, target=target), pictures, placed
  mask, axes = _like(words, given, "attention_mask"), None
  if options.get("positions") == "mrope":
    axes = packed_media.positions(model, given, tokens, pictures)
  if axes is not None:
    given.pop("position_ids", None)
  tokens = words
  types = given.get("token_type_ids")
  jumps = np.diff(given.get("position_ids", np.zeros((1, 0))), axis=-1) != 1
  if mask is None and not last and jumps.any():
    raise ValueError("position_ids that jump (packed rows) need an attention_mask beside them")
  if types is None or "types" not in options:
    ar = np.ones_like(tokens)
  else:
    ar = _BLOCKS[options["types"]](_like(tokens, given, "token_type_ids"), mask)
  text = _text(given, tokens, ar, last, options)
  text = text if axes is None else text.replace(positions=axes)
  batch = Batch(text.replace(media_index=placed.index), placed.media, extra=placed.extra)
  return batch, pictures, placed


def memory_batch(model: Any, given: Mapping[str, Any], last: bool) -> Batch:
  """A batch with media that are seen by cross-attention; see `lm_batch`."""
  reader = memory_media.reader(model)
  given = inputs.take(given, *_TEXT, *reader.inputs)
  tokens = inputs.ids(_need(given, "input_ids"), model.module.decoder.vocab)
  media, see = reader.read(model, given)
  text = _text(given, tokens, np.ones_like(tokens), last, model.system.options)
  return Batch(text.replace(see=see), media)


BATCHES = {
  "lm": lm_batch,
  "vlm": vlm_batch,
  "encdec": encdec_inputs.batch,
  "memory": memory_batch,
}


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
  given: Mapping[str, np.ndarray],
  tokens: np.ndarray,
  ar: np.ndarray,
  last: bool,
  options: Mapping[str, Any],
) -> Text:
  """Text without media. Windows count columns, padding included, as the reference's do.

  Options: `first_position`; `numbered`: only real tokens are counted in positions, always, and
  padding has `pad_position`.
  """
  first, numbered = options.get("first_position", 0), options.get("numbered", False)
  rows, length = tokens.shape
  column = np.broadcast_to(np.arange(length, dtype=np.int32), tokens.shape)
  mask = _like(tokens, given, "attention_mask")
  positions = given.get("position_ids")
  # Padding looks at what a real token in its place would see; nothing sees it.
  segment = np.ones_like(tokens) if mask is None else np.where(mask > 0, 1, -1)
  if positions is None and (last or numbered) and mask is not None:
    # The reference numbers real tokens when it generates, and goes on from the last column's.
    pad = 0 if last else options.get("pad_position", -1)
    positions = np.where(mask > 0, np.cumsum(mask > 0, axis=1) - 1, pad).astype(np.int32)
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


def lm(model: Any, given: Mapping[str, Any]) -> dict[str, np.ndarray]:
  """A text model: `logits` [B, T, V]."""
  batch = lm_batch(model, given, False)
  room(model, batch)
  return {"logits": np.asarray(model.apply(batch).logits)}


def room(model: Any, batch: Batch, new: int = 1) -> int:
  """How many of `new` ids behind a text the decoder's table of positions has room for.

  Raises:
    ValueError: none.
  """
  rows = getattr(model.module.decoder, "posemb", 0)
  if not rows:
    return new
  rows -= model.module.decoder.posemb_offset
  end = int(batch.text.positions.max()) + 1
  if end > rows:
    raise ValueError(f"the text has {end} positions, the model has {rows}")
  return min(new, rows - end + 1)


def vlm(model: Any, given: Mapping[str, Any]) -> dict[str, np.ndarray]:
  """A vision-language model: `logits` [B, T, V] and, with media, `image_features` and
  `video_features` [N, D], every picture's rows in reading order, and `qformer_output` [n, L, D']
  where the connector shows it."""
  batch, pictures, placed = _placed(model, given, False)
  room(model, batch)
  out = model.apply(batch)
  found = {"logits": np.asarray(out.logits)}
  soft = None if out.soft is None else np.asarray(out.soft.x)
  for name in ("image", "video"):
    token = model.system.options.get(f"{name}_token")
    rows = [
      soft[row, at]
      for picture, (row, at) in zip(pictures, placed.where, strict=True)
      if picture.token == token
    ]
    if rows:
      found[f"{name}_features"] = np.concatenate(rows)
  if out.soft is not None and out.soft.hidden is not None:
    slots = batch.media[model.module.connector.source].item > 0
    found["qformer_output"] = np.asarray(out.soft.hidden)[slots]
  return found


def memory(model: Any, given: Mapping[str, Any]) -> dict[str, np.ndarray]:
  """A model with cross-attention: `logits` [B, T, V] and, with media, what is seen of them, see
  `memory_media.Reader`."""
  batch = memory_batch(model, given, False)
  out = model.apply(batch)
  found = {"logits": np.asarray(out.logits)}
  if out.soft is not None:
    rows, slots = batch.media["image"].item.shape
    states, reader = np.asarray(out.soft.x), memory_media.reader(model)
    lead = (rows, slots) if reader.by_row else (rows * slots,)
    found[reader.states] = states.reshape(*lead, -1, states.shape[-1])
  return found


def ends(model: Any) -> tuple[tuple[int, ...], int | None]:
  """Ids that end a row, and what it is filled with afterwards.

  From `generation_config.json` if there is one, else from the config; without a pad id the first
  end stands for it.
  """
  eos, pad = model.system.options.get("eos", ()), model.system.options.get("pad")
  cfg = fields.generation(model)
  if cfg is not None:
    eos, pad = fields.ids(cfg.get("eos_token_id")), cfg.get("pad_token_id")
  return eos, pad if pad is not None or not eos else eos[0]


def trim(ids: np.ndarray, eos: tuple[int, ...]) -> np.ndarray:
  """Cuts columns [B, n] after the one in which the last row ends."""
  end = np.isin(ids, eos)
  steps = np.where(end.any(axis=1), end.argmax(axis=1) + 1, ids.shape[1])
  return ids[:, : steps.max(initial=1)]


def greedy(model: Any, given: Mapping[str, Any], max_new_tokens: int) -> np.ndarray:
  """Continues every row of a model by its likeliest tokens, int32 [B, n].

  Raises:
    ValueError: bad inputs, rules of choosing that are not read (see `choosing.rules`), or a row
      that goes on behind the last position that the model has.
  """
  eos, pad = ends(model)
  tokens, options = given.get("input_ids"), model.system.options
  if tokens is None and "prompt" in options and given.get("pixel_values") is not None:
    rows = len(given["pixel_values"])
    given = dict(given) | {"input_ids": np.tile(np.int32(options["prompt"]), (rows, 1))}
  guess = options.get("guess_padding", True) and given.get("attention_mask") is None
  if guess and tokens is not None and pad not in (None, *eos):
    # Without a mask the reference takes pad ids for padding, unless they also end a row.
    given = dict(given) | {"attention_mask": (np.asarray(tokens) != pad).astype(np.int32)}
  batch = BATCHES[model.system.inputs](model, given, True)
  count = room(model, batch, max_new_tokens)
  # What the reference takes for the row so far: of an encoder-decoder what its decoder reads.
  row, mask = np.asarray(given["input_ids"]), given.get("attention_mask")
  if batch.target is not None:
    row, mask = batch.target.tokens, None
  how, seen = choosing.rules(model, eos, row.shape[1], max_new_tokens), None
  if how.repetition_penalty != 1.0:
    decoder = model.module.decoder
    seen = choosing.used(row, mask, getattr(decoder, "out_vocab", 0) or decoder.vocab)
  module, params, batch = model.decoding(batch)
  ids = generation.decode(
    module,
    params,
    batch,
    jax.random.key(0),
    max_new_tokens=count,
    eos=eos,
    sampling=how,
    pad=0 if pad is None else pad,
    seen=seen,
  ).tokens
  if count < max_new_tokens and not np.isin(ids, eos).any(axis=1).all():
    raise ValueError(f"the table of positions has room for {count} of {max_new_tokens} new tokens")
  return trim(np.asarray(ids), eos)


KINDS = {"lm": lm, "vlm": vlm, "encdec": encdec_inputs.forward, "memory": memory}
GENERATORS = dict.fromkeys(KINDS, greedy)
