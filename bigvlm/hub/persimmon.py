"""Persimmon (Adept's Persimmon-8B, 2023) as a text model."""

from collections.abc import Mapping
from typing import Any

from bigvlm.ckpt import rules
from bigvlm.hub import text
from bigvlm.hub.rotary import rotary

_LAYER = (
  *rules.norm("input_layernorm", "norm1"),
  *rules.joint("self_attn.query_key_value.", "attn", "self_attn.dense", "h + d"),
  *rules.norm("self_attn.q_layernorm", "attn/q_norm"),
  *rules.norm("self_attn.k_layernorm", "attn/k_norm"),
  *rules.norm("post_attention_layernorm", "norm2"),
  *rules.mlp("mlp.dense_", "mlp", "h_to_4h", "4h_to_h"),
)


def _decoder(cfg: Mapping[str, Any]) -> dict[str, Any]:
  """Decoder config of a `PersimmonConfig`."""
  decoder, f = text.plain(
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
  return decoder | dict(
    norm="layer",
    eps=f.layer_norm_eps,
    qk_norm=f.qk_layernorm,
    gated=False,
    bias=True,
    **rotary(cfg, decoder["head_dim"], part=0.5, length=16_384),
  )


_RULES = text.whole(_LAYER, "model.final_layernorm")
TEXTS = {"persimmon": text.Text(_decoder, _RULES, (2, None))}
