"""What a checkpoint's `generation_config.json` says of greedy choices, beside the ids of ends.

Read are those fields of transformers' `GenerationConfig` whose `LogitsProcessor` looks at single
tokens. Fields of sampling and of beams do not matter to a greedy run.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from bigvlm.hub import fields
from bigvlm.sampling import Sampling

# Change what is likeliest in ways that are not read; the values are those that do nothing.
_UNREAD: dict[str, tuple[Any, ...]] = {
  "encoder_no_repeat_ngram_size": (None, 0),
  "encoder_repetition_penalty": (None, 1),
  "exponential_decay_length_penalty": (None,),
  "guidance_scale": (None, 1),
  "no_repeat_ngram_size": (None, 0),
  "sequence_bias": (None,),
  "watermarking_config": (None,),
}


def rules(model: Any, eos: tuple[int, ...], width: int, new: int) -> Sampling:
  """The choices of the reference's greedy `generate`.

  Args:
    model: `HubModel`. eos: ids that end a row.
    width: columns of ids before the first new one. new: most new tokens.

  Raises:
    ValueError: rules that are not read; names the field.
  """
  cfg = _given(model)
  for name, off in _UNREAD.items():
    if cfg.get(name) not in off:
      raise ValueError(f"generation_config.json: {name}={cfg[name]} is not read by generate_hf")
  never = [*fields.ids(cfg.get("suppress_tokens"))]
  for word in cfg.get("bad_words_ids") or ():
    if len(word) > 1:
      raise ValueError(f"generation_config.json: bad_words_ids of several ids {word} are not read")
    never += [i for i in word if i not in eos]
  first, last = (fields.ids(cfg.get(f"forced_{name}_token_id")) for name in ("bos", "eos"))
  forced = [(0, first)] * (width == 1 and bool(first)) + [(new - 1, last)] * bool(last)
  least = cfg.get("min_new_tokens")
  least = (cfg.get("min_length") or 0) - width if least is None else least
  begins = int(width == 1 and bool(first))
  barred = ((0, least, eos), (0, new, never))
  barred += ((begins, begins + 1, fields.ids(cfg.get("begin_suppress_tokens"))),)
  return Sampling(
    repetition_penalty=float(cfg.get("repetition_penalty") or 1.0),
    barred=tuple((a, b, tuple(ids)) for a, b, ids in barred if ids and b > a),
    forced=tuple(forced),
  )


def used(ids: np.ndarray, mask: np.ndarray | None, vocab: int) -> np.ndarray:
  """bool [B, V]: ids of a row that a repetition penalty is for, its left padding not among them.

  Args:
    ids: [B, T], placeholders of media too. mask: [B, T], 0 = padding; None = none.
    vocab: V, ids that can come out; others are left out.
  """
  real = np.ones(ids.shape, bool) if mask is None else np.cumsum(mask, axis=1) > 0
  found = np.zeros((len(ids), vocab), bool)
  rows, at = np.nonzero(real & (ids < vocab))
  found[rows, ids[rows, at]] = True
  return found


def _given(model: Any) -> Mapping[str, Any]:
  """`generation_config.json`, or the fields of the same names in `config.json` and its text."""
  cfg = fields.generation(model)
  if cfg is None:
    cfg = model.json or {}
    cfg = (cfg.get("text_config") or {}) | {k: v for k, v in cfg.items() if v is not None}
  return cfg
