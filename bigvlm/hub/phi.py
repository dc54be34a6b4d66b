"""Phi 1 to 2 (arXiv 2306.11644, 2309.05463) as text models."""

from collections.abc import Mapping
from typing import Any

from bigvlm.ckpt import rules
from bigvlm.ckpt.rules import CkptMap, Rule
from bigvlm.hub import fields, tying
from bigvlm.hub.rotary import rotary
from bigvlm.hub.system import System

_LAYER = (
  *rules.norm("input_layernorm", "norm1"),
  *rules.attention(
    "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.dense", "attn"
  ),
  *rules.norm("self_attn.q_layernorm", "attn/q_norm"),
  *rules.norm("self_attn.k_layernorm", "attn/k_norm"),
  *rules.linear("mlp.fc1", "mlp/up"),
  *rules.linear("mlp.fc2", "mlp/down"),
)
RULES = {
  "phi": (
    Rule("model.embed_tokens.weight", "decoder/embedding"),
    *rules.under(_LAYER, "model.layers.{i}.", "decoder/blocks/*/"),
    *rules.norm("model.final_layernorm", "decoder/norm"),
    Rule("lm_head.weight", "decoder/head", "v d -> d v"),
    Rule("lm_head.bias", "decoder/head_bias"),
  )
}
TIED = (("lm_head.weight", "model.embed_tokens.weight"),)
# Buffers in files of old versions.
_MAP = CkptMap(RULES["phi"], tied=TIED, carry=(r".*\.rotary_emb\.inv_freq",))


def decoder(cfg: Mapping[str, Any]) -> dict[str, Any]:
  """Decoder config of a `PhiConfig`; also a tied head has a bias of its own."""
  f = fields.fields(
    cfg,
    vocab_size=51_200,
    hidden_size=2048,
    intermediate_size=8192,
    num_hidden_layers=24,
    num_attention_heads=32,
    num_key_value_heads=None,
    hidden_act="gelu_new",
    layer_norm_eps=1e-5,
    qk_layernorm=False,
    head_dim=None,
    tie_word_embeddings=False,
  )
  head_dim = f.head_dim or f.hidden_size // f.num_attention_heads
  return dict(
    kind="decoder",
    vocab=f.vocab_size,
    width=f.hidden_size,
    depth=f.num_hidden_layers,
    hidden=f.intermediate_size,
    heads=f.num_attention_heads,
    kv_heads=f.num_key_value_heads or f.num_attention_heads,
    head_dim=head_dim,
    tied=f.tie_word_embeddings,
    head_bias=True,
    embed_scale=False,
    norm="layer",
    eps=f.layer_norm_eps,
    qk_norm=f.qk_layernorm,
    parallel=True,
    act=fields.activation(f.hidden_act),
    gated=False,
    bias=True,
    **rotary(cfg, head_dim, part=0.5),
  )


DECODERS = {"phi": decoder}
ENDS = {"phi": (2, None)}


def phi(cfg: Mapping[str, Any]) -> System:
  """`PhiForCausalLM`."""
  model = dict(kind="lm", decoder=decoder(cfg))
  return System(model, _MAP, "lm", options=fields.ends(cfg, *ENDS["phi"]), refine=tying.refine)
