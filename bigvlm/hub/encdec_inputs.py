"""Inputs and outputs of transformers' encoder-decoders of text (see `hub.decoding`).

`KINDS` is the table of those that do not generate.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from bigvlm.hub import fields, inputs
from bigvlm.types import Batch, MaskSpec, Text

INPUTS = ("input_ids", "attention_mask", "decoder_input_ids", "decoder_attention_mask", "labels")


def batch(model: Any, given: Mapping[str, Any], last: bool) -> Batch:
  """An encoder-decoder's batch.

  Args:
    model: `HubModel`. given: inputs of transformers. last: see `target`.

  Raises:
    ValueError: an input that is missing, unknown, of another shape or out of range.
  """
  given = inputs.take(given, *INPUTS)
  if "input_ids" not in given:
    raise ValueError(f"the inputs lack input_ids; they have {', '.join(given) or 'nothing'}")
  tokens = inputs.ids(given["input_ids"], model.module.decoder.vocab)
  return Batch(encoder(tokens, given), {}, target=target(model, given, len(tokens), last))


def encoder(tokens: np.ndarray, given: Mapping[str, np.ndarray]) -> Text:
  """What the encoder reads: tokens int32 [B, T] under `attention_mask`."""
  return _text(tokens, given, "attention_mask", 0)


def target(model: Any, given: Mapping[str, np.ndarray], rows: int, last: bool) -> Text:
  """What the decoder reads: `decoder_input_ids` or, without them, `labels` shifted by one.

  Args:
    model: `HubModel`. given: inputs of transformers. rows: of the batch.
    last: for generation: the decoder reads its start token alone, whatever is given for it.

  Raises:
    ValueError: neither, or ids that do not fit.
  """
  options = model.system.options
  if last:
    name, ids = "decoder_start_token_id", np.full((rows, 1), _start(model))
  elif "decoder_input_ids" in given:
    name, ids = "decoder_input_ids", given["decoder_input_ids"]
  elif "labels" in given:
    name, ids = "labels", _shifted(given["labels"], options["start"], options["pad"])
  else:
    raise ValueError("an encoder-decoder needs decoder_input_ids or labels beside input_ids")
  ids = inputs.ids(ids, model.module.decoder.vocab, name)
  if len(ids) != rows:
    raise ValueError(f"{name} has {len(ids)} rows, but input_ids has {rows}")
  return _text(ids, {} if last else given, "decoder_attention_mask", 1)


def forward(model: Any, given: Mapping[str, Any]) -> dict[str, np.ndarray]:
  """An encoder-decoder: `logits` [B, T, V] at the positions of the decoder."""
  return {"logits": np.asarray(model.apply(batch(model, given, False)).logits)}


def encoded(model: Any, given: Mapping[str, Any]) -> dict[str, np.ndarray]:
  """An encoder alone: `last_hidden_state` [B, T, D] of `input_ids` under `attention_mask`."""
  given = inputs.take(given, "input_ids", "attention_mask")
  if "input_ids" not in given:
    raise ValueError(f"the inputs lack input_ids; they have {', '.join(given) or 'nothing'}")
  tokens = inputs.ids(given["input_ids"], model.module.vocab)
  return {"last_hidden_state": np.asarray(model.apply(Batch(encoder(tokens, given), {})).hidden)}


def _text(tokens: np.ndarray, given: Mapping[str, np.ndarray], name: str, ar: int) -> Text:
  """Tokens [B, T] under the mask `name`; distances count padding, as the reference's do."""
  mask = given.get(name)
  if mask is not None and mask.shape != tokens.shape:
    raise ValueError(f"{name} is {list(mask.shape)}, but its tokens are {list(tokens.shape)}")
  column = np.broadcast_to(np.arange(tokens.shape[1], dtype=np.int32), tokens.shape)
  # Padding looks at what a real token in its place would see; nothing sees it.
  segment = np.ones_like(tokens) if mask is None else np.where(mask > 0, 1, -1).astype(np.int32)
  spec = MaskSpec(segment, column * np.int32(ar), column)
  return Text(tokens, spec, column, np.full_like(tokens, -1), column)


def _shifted(labels: np.ndarray, start: int, pad: int) -> np.ndarray:
  """What the decoder reads for labels [B, T]: the start token, then all but the last of them."""
  shifted = np.roll(labels, 1, axis=-1)
  shifted[..., :1] = start
  return np.where(shifted == -100, pad, shifted)


def _start(model: Any) -> int:
  """The decoder's first token: that of `generation_config.json`, else of the config."""
  cfg = fields.generation(model) or {}
  starts = (cfg.get("decoder_start_token_id"), cfg.get("bos_token_id"))
  return next((i for i in starts if i is not None), model.system.options["start"])


KINDS = {"text_encoder": encoded}
