"""Inputs and outputs of transformers' encoder-decoders of text (see `hub.decoding`)."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from bigvlm.hub import fields, inputs
from bigvlm.types import Batch, MaskSpec, Text

_ENCODER = ("input_ids", "attention_mask")
_DECODER = ("decoder_input_ids", "decoder_attention_mask", "labels")


def batch(model: Any, given: Mapping[str, Any], last: bool) -> Batch:
  """An encoder-decoder's batch.

  The decoder reads `decoder_input_ids` or, without them, `labels` shifted by one.

  Args:
    model: `HubModel`. given: inputs of transformers. last: for generation: the decoder reads its
      start token alone, whatever is given for it.

  Raises:
    ValueError: an input that is missing, unknown, of another shape or out of range.
  """
  given = inputs.take(given, *_ENCODER, *_DECODER)
  if "input_ids" not in given:
    raise ValueError(f"the inputs lack input_ids; they have {', '.join(given) or 'nothing'}")
  vocab, options = model.module.decoder.vocab, model.system.options
  tokens = inputs.ids(given["input_ids"], vocab)
  text = _text(tokens, given, "attention_mask", 0)
  if last:
    name, target = "decoder_start_token_id", np.full((len(tokens), 1), _start(model))
  elif "decoder_input_ids" in given:
    name, target = "decoder_input_ids", given["decoder_input_ids"]
  elif "labels" in given:
    name, target = "labels", _shifted(given["labels"], options["start"], options["pad"])
  else:
    raise ValueError("an encoder-decoder needs decoder_input_ids or labels beside input_ids")
  target = inputs.ids(target, vocab, name)
  if len(target) != len(tokens):
    raise ValueError(f"{name} has {len(target)} rows, but input_ids has {len(tokens)}")
  masks = {} if last else given
  return Batch(text, {}, target=_text(target, masks, "decoder_attention_mask", 1))


def forward(model: Any, given: Mapping[str, Any]) -> dict[str, np.ndarray]:
  """An encoder-decoder: `logits` [B, T, V] at the positions of the decoder."""
  return {"logits": np.asarray(model.apply(batch(model, given, False)).logits)}


def _text(tokens: np.ndarray, given: Mapping[str, np.ndarray], name: str, ar: int) -> Text:
  """Tokens [B, T] under the mask `name`; distances count padding, as the reference's do."""
  mask = given.get(name)
  if mask is not None and mask.shape != tokens.shape:
    raise ValueError(f"{name} is {list(mask.shape)}, but its tokens are {list(tokens.shape)}")
  column = np.broadcast_to(np.arange(tokens.shape[1], dtype=np.int32), tokens.shape)
  segment = np.ones_like(tokens) if mask is None else (mask > 0).astype(np.int32)
  spec = MaskSpec(segment, column * np.int32(ar), column)
  return Text(tokens, spec, column, np.full_like(tokens, -1), column)


def _shifted(labels: np.ndarray, start: int, pad: int) -> np.ndarray:
  """What the decoder reads for labels [B, T]: the start token, then all but the last of them."""
  shifted = np.roll(labels, 1, axis=-1)
  shifted[..., :1] = start
  return np.where(shifted == -100, pad, shifted)


def _start(model: Any) -> int:
  """The decoder's first token: that of `generation_config.json`, else of the config."""
  path = None if model.directory is None else model.directory / "generation_config.json"
  cfg = fields.read_json(path) if path is not None and path.is_file() else {}
  start = cfg.get("decoder_start_token_id")
  return model.system.options["start"] if start is None else start
