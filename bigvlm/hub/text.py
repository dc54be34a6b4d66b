"""What one text model of transformers is described by, and what nearly all of them share."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

from bigvlm.ckpt import rules
from bigvlm.ckpt.rules import CkptMap, Rule
from bigvlm.hub import fields, tying
from bigvlm.hub.system import System

# Buffers in files of old versions.
BUFFERS = (r".*\.rotary_emb\.inv_freq",)


@dataclasses.dataclass(frozen=True)
class Text:
  """A text model.

  Attributes:
    decoder: its config -> decoder config.
    rules: of the decoder, canonical names as in a file of the text model alone.
    ends: ids of its class that end a row and that fill it.
    options: further options of its inputs.
    rename: as of `CkptMap`, in a file of the text model alone.
  """

  decoder: Callable[[Mapping[str, Any]], dict[str, Any]]
  rules: tuple[Rule, ...]
  ends: tuple[int | None, int | None] = (None, None)
  options: dict[str, Any] = dataclasses.field(default_factory=dict)
  rename: tuple[tuple[str, str], ...] = ()

  @functools.cached_property
  def tied(self) -> tuple[tuple[str, str], ...]:
    """The head that may be the embedding table."""
    names = {rule.dst: rule.src for rule in self.rules}
    return ((names["decoder/head"], names["decoder/embedding"]),)

  def read(self, cfg: Mapping[str, Any]) -> System:
    """The system of the text model alone, with its head."""
    model = dict(kind="lm", decoder=self.decoder(cfg))
    found = CkptMap(self.rules, self.rename, self.tied, BUFFERS)
    options = fields.ends(cfg, *self.ends) | self.options
    return System(model, found, "lm", options=options, refine=tying.refine)


def whole(
  layer: Sequence[Rule], norm: str = "model.norm", *more: Rule, body: str = "model."
) -> tuple[Rule, ...]:
  """Rules of a decoder from those of a layer.

  Args:
    layer: its rules. norm: stored name of the last norm. more: further rules.
    body: what the other stored names begin with, the head's apart.
  """
  return (
    Rule(f"{body}embed_tokens.weight", "decoder/embedding"),
    *rules.under(layer, body + "layers.{i}.", "decoder/blocks/*/"),
    *rules.norm(norm, "decoder/norm"),
    *more,
    Rule("lm_head.weight", "decoder/head", "v d -> d v"),
  )


def plain(cfg: Mapping[str, Any], **defaults: Any) -> tuple[dict[str, Any], SimpleNamespace]:
  """Decoder config of the fields that nearly all text models have, and all the fields.

  Args:
    cfg: the config.
    defaults: every field that is read with its default. `num_key_value_heads` and `head_dim` may be
      None or left out: as many as heads, and their share of the width.
  """
  f = fields.fields(cfg, **defaults)
  decoder = dict(
    kind="decoder",
    vocab=f.vocab_size,
    width=f.hidden_size,
    depth=f.num_hidden_layers,
    hidden=f.intermediate_size,
    heads=f.num_attention_heads,
    kv_heads=getattr(f, "num_key_value_heads", None) or f.num_attention_heads,
    head_dim=getattr(f, "head_dim", None) or f.hidden_size // f.num_attention_heads,
    tied=f.tie_word_embeddings,
    embed_scale=False,
    act=fields.activation(f.hidden_act),
  )
  return decoder, f
