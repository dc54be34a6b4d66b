"""The text models that a vision-language model may be built on, by `model_type`."""

import re
from collections.abc import Mapping
from typing import Any

from bigvlm.ckpt import rules
from bigvlm.ckpt.rules import Rule
from bigvlm.hub import fields, gemma, llama, opt, persimmon, phi
from bigvlm.utils import names

# `model_type` of a text config -> reader of it, a decoder config.
DECODERS = gemma.DECODERS | llama.DECODERS | opt.DECODERS | persimmon.DECODERS | phi.DECODERS
# -> rules of the decoder, canonical names as in a file of the text model alone.
RULES = gemma.RULES | llama.RULES | opt.RULES | persimmon.RULES | phi.RULES
# -> ids of its class that end a row and that fill it.
ENDS = dict.fromkeys(gemma.DECODERS, (1, 0)) | llama.ENDS | opt.ENDS | persimmon.ENDS | phi.ENDS
# -> further options of its inputs.
OPTIONS = opt.OPTIONS


def kind(text: Mapping[str, Any], default: str = "llama") -> str:
  """`model_type` of a text config, by default that of the class around it.

  Raises:
    ValueError: a text model that is not in the tables.
  """
  found = text.get("model_type") or default
  if found not in DECODERS:
    raise ValueError(names.unknown("model_type of text_config in config.json", found, DECODERS))
  return found


def decoder(text: Mapping[str, Any], default: str = "llama") -> dict[str, Any]:
  """Decoder config of a text config; see `kind`."""
  return DECODERS[kind(text, default)](text)


def body(text: Mapping[str, Any], default: str = "llama") -> dict[str, Any]:
  """As `decoder`, for a class that has a head of its own around the text model: one matrix, with
  neither the bias nor the soft-cap of the text model's."""
  return decoder(text, default) | dict(head_bias=False, final_softcap=0.0)


def under(text: Mapping[str, Any], prefix: str, default: str = "llama") -> tuple[Rule, ...]:
  """Rules of a text config's model with `prefix` in front of the stored names; see `kind`."""
  return rules.under(RULES[kind(text, default)], prefix, "")


def beside(text: Mapping[str, Any], body: str, default: str = "llama") -> tuple[Rule, ...]:
  """As `under`, for files that have the head beside the rest, whose names begin with `body`."""
  found = RULES[kind(text, default)]
  return tuple(r._replace(src=re.sub(r"^model\.", body, r.src)) for r in found)


def special_ids(
  cfg: Mapping[str, Any], text: Mapping[str, Any], default: str = "llama"
) -> dict[str, Any]:
  """Options of a system: `eos` and `pad` of a config, else of its text config, else its class; and
  `OPTIONS`."""
  inner = fields.ends(text, *ENDS[kind(text, default)])
  outer = fields.ends(cfg)
  pad = inner["pad"] if outer["pad"] is None else outer["pad"]
  more = OPTIONS.get(kind(text, default), {})
  return dict(eos=outer["eos"] or inner["eos"], pad=pad) | more
