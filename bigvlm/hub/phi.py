"""Phi 1 to 2 (arXiv 2306.11644, 2309.05463) as text models."""

from collections.abc import Mapping
from typing import Any

from bigvlm.ckpt import rules
from bigvlm.ckpt.rules import Rule
from bigvlm.hub import text
from bigvlm.hub.rotary import rotary

_LAYER = (
  *rules.norm("input_layernorm", "norm1"),
  *rules.attention("self_attn", "attn", "dense"),
  *rules.norm("self_attn.q_layernorm", "attn/q_norm"),
  *rules.norm("self_attn.k_layernorm", "attn/k_norm"),
  *rules.mlp("mlp.", "mlp"),
)
_RULES = text.whole(_LAYER, "model.final_layernorm", Rule("lm_head.bias", "decoder/head_bias"))


def _decoder(cfg: Mapping[str, Any]) -> dict[str, Any]:
  """Decoder config of a `PhiConfig`; also a tied head has a bias of its own."""
  decoder, f = text.plain(
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
  return decoder | dict(
    head_bias=True,
    norm="layer",
    eps=f.layer_norm_eps,
    qk_norm=f.qk_layernorm,
    parallel=True,
    gated=False,
    bias=True,
    **rotary(cfg, decoder["head_dim"], part=0.5),
  )


TEXTS = {"phi": text.Text(_decoder, _RULES, (2, None))}
