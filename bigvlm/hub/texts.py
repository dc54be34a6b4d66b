"""The text models that a vision-language model may be built on, by `model_type`."""

import re
from collections.abc import Mapping
from typing import Any

from bigvlm.ckpt import rules
from bigvlm.ckpt.rules import Rule
from bigvlm.hub import fields, gemma, llama, opt, persimmon, phi
from bigvlm.hub.text import Text
from bigvlm.utils import names

# By `model_type`.
TEXTS = gemma.TEXTS | llama.TEXTS | opt.TEXTS | persimmon.TEXTS | phi.TEXTS


def named(text: Mapping[str, Any], default: str = "llama") -> Text:
  """The text model of a text config, by its `model_type`, by default that of the class around it.

  Raises:
    ValueError: a text model that is not in the table.
  """
  found = text.get("model_type") or default
  return names.lookup("model_type of text_config in config.json", found, TEXTS)


def decoder(text: Mapping[str, Any], default: str = "llama") -> dict[str, Any]:
  """Decoder config of a text config; see `named`."""
  return named(text, default).decoder(text)


def body(text: Mapping[str, Any], default: str = "llama") -> dict[str, Any]:
  """As `decoder`, for a class that has a head of its own around the text model: one matrix, with
  neither the bias nor the soft-cap of the text model's."""
  return decoder(text, default) | dict(head_bias=False, final_softcap=0.0)


def under(text: Mapping[str, Any], prefix: str, default: str = "llama") -> tuple[Rule, ...]:
  """Rules of a text config's model with `prefix` in front of the stored names; see `named`."""
  return rules.under(named(text, default).rules, prefix, "")


def beside(text: Mapping[str, Any], body: str, default: str = "llama") -> tuple[Rule, ...]:
  """As `under`, for files that have the head beside the rest, whose names begin with `body`."""
  found = named(text, default).rules
  return tuple(r._replace(src=re.sub(r"^model\.", body, r.src)) for r in found)


def special_ids(
  cfg: Mapping[str, Any], text: Mapping[str, Any], default: str = "llama"
) -> dict[str, Any]:
  """Options of a system: `eos` and `pad` of a config, else of its text config, else its class; and
  its further options."""
  found = named(text, default)
  inner = fields.ends(text, *found.ends)
  outer = fields.ends(cfg)
  pad = inner["pad"] if outer["pad"] is None else outer["pad"]
  return dict(eos=outer["eos"] or inner["eos"], pad=pad) | found.options
