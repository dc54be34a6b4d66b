"""OPT as a text model (arXiv 2205.01068)."""

from collections.abc import Mapping
from typing import Any

from bigvlm.ckpt import rules
from bigvlm.ckpt.rules import Rule
from bigvlm.hub import text

_LAYER = (
  *rules.norm("self_attn_layer_norm", "norm1"),
  *rules.attention("self_attn", "attn", "out_proj"),
  *rules.norm("final_layer_norm", "norm2"),
  *rules.mlp("", "mlp"),
)
_RULES = text.whole(
  _LAYER,
  "model.decoder.final_layer_norm",
  Rule("model.decoder.embed_positions.weight", "decoder/posemb"),
  *rules.linear("model.decoder.project_in", "decoder/embed_in"),
  *rules.linear("model.decoder.project_out", "decoder/embed_out"),
  body="model.decoder.",
)
_OFFSET = 2  # Row of the first position in the table.


def _decoder(cfg: Mapping[str, Any]) -> dict[str, Any]:
  """Decoder config of an `OPTConfig`."""
  own = dict(
    intermediate_size=cfg.get("ffn_dim", 3072), hidden_act=cfg.get("activation_function", "relu")
  )
  decoder, f = text.plain(
    cfg | own,
    **own,
    vocab_size=50_272,
    hidden_size=768,
    num_hidden_layers=12,
    max_position_embeddings=2048,
    do_layer_norm_before=True,
    _remove_final_layer_norm=False,
    word_embed_proj_dim=None,
    num_attention_heads=12,
    enable_bias=True,
    layer_norm_elementwise_affine=True,
    tie_word_embeddings=True,
  )
  inner = f.word_embed_proj_dim
  return decoder | dict(
    embed_dim=0 if inner in (None, f.hidden_size) else inner,
    posemb=f.max_position_embeddings + _OFFSET,
    posemb_offset=_OFFSET,
    rope_base=0.0,
    norm="layer" if f.layer_norm_elementwise_affine else "layer_bare",
    eps=1e-5,
    norm_after=not f.do_layer_norm_before,
    final_norm=f.do_layer_norm_before and not f._remove_final_layer_norm,
    gated=False,
    bias=f.enable_bias,
  )


# Real tokens are numbered and padding is not, whatever the pass. Files of the model without a head
# begin at the decoder.
TEXTS = {
  "opt": text.Text(
    _decoder, _RULES, (2, 1), {"numbered": True}, ((r"^decoder\.", "model.decoder."),)
  )
}
