"""Persimmon (Adept's Persimmon-8B, 2023) as a text model."""

from collections.abc import Mapping
from typing import Any

from bigvlm.ckpt import rules
from bigvlm.ckpt.rules import CkptMap, Rule
from bigvlm.hub import fields, tying
from bigvlm.hub.rotary import rotary
from bigvlm.hub.system import System

_LAYER = (
  *rules.norm("input_layernorm", "norm1"),
  *(
    Rule(f"self_attn.query_key_value.{kind}", tuple(f"attn/{name}/{leaf}" for name in "qkv"), axes)
    for kind, leaf, axes in (
      ("weight", "kernel", "(h + d) i -> i h d"),
      ("bias", "bias", "(h + d) -> h d"),
    )
  ),
  *rules.norm("self_attn.q_layernorm", "attn/q_norm"),
  *rules.norm("self_attn.k_layernorm", "attn/k_norm"),
  *rules.linear("self_attn.dense", "attn/o", "o (h d) -> h d o"),
  *rules.norm("post_attention_layernorm", "norm2"),
  *rules.linear("mlp.dense_h_to_4h", "mlp/up"),
  *rules.linear("mlp.dense_4h_to_h", "mlp/down"),
)
RULES = {
  "persimmon": (
    Rule("model.embed_tokens.weight", "decoder/embedding"),
    *rules.under(_LAYER, "model.layers.{i}.", "decoder/blocks/*/"),
    *rules.norm("model.final_layernorm", "decoder/norm"),
    Rule("lm_head.weight", "decoder/head", "v d -> d v"),
  )
}
TIED = (("lm_head.weight", "model.embed_tokens.weight"),)
# Buffers in files of old versions.
BUFFERS = (r".*\.rotary_emb\.inv_freq",)
_MAP = CkptMap(RULES["persimmon"], tied=TIED, carry=BUFFERS)


def decoder(cfg: Mapping[str, Any], theta: float = 10_000.0) -> dict[str, Any]:
  """Decoder config of a `PersimmonConfig`.

  Args:
    cfg: its fields. theta: base of the rotary embedding where they do not say.
  """
  f = fields.fields(
    cfg,
    vocab_size=262_144,
    hidden_size=4096,
    intermediate_size=16_384,
    num_hidden_layers=36,
    num_attention_heads=64,
    hidden_act="relu2",
    layer_norm_eps=1e-5,
    qk_layernorm=True,
    tie_word_embeddings=False,
  )
  head_dim = f.hidden_size // f.num_attention_heads
  return dict(
    kind="decoder",
    vocab=f.vocab_size,
    width=f.hidden_size,
    depth=f.num_hidden_layers,
    hidden=f.intermediate_size,
    heads=f.num_attention_heads,
    kv_heads=f.num_attention_heads,
    head_dim=head_dim,
    tied=f.tie_word_embeddings,
    embed_scale=False,
    norm="layer",
    eps=f.layer_norm_eps,
    qk_norm=f.qk_layernorm,
    act=fields.activation(f.hidden_act),
    gated=False,
    bias=True,
    **rotary(cfg, head_dim, theta=theta, part=0.5, length=16_384),
  )


DECODERS = {"persimmon": decoder}
ENDS = {"persimmon": (2, None)}


def persimmon(cfg: Mapping[str, Any]) -> System:
  """`PersimmonForCausalLM`."""
  model = dict(kind="lm", decoder=decoder(cfg))
  return System(
    model, _MAP, "lm", options=fields.ends(cfg, *ENDS["persimmon"]), refine=tying.refine
  )
