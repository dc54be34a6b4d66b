"""OPT as a text model (arXiv 2205.01068)."""

from collections.abc import Mapping
from typing import Any

from bigvlm.ckpt import rules
from bigvlm.ckpt.rules import CkptMap, Rule
from bigvlm.hub import fields, tying
from bigvlm.hub.system import System

_LAYER = (
  *rules.norm("self_attn_layer_norm", "norm1"),
  *rules.attention(
    "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.out_proj", "attn"
  ),
  *rules.norm("final_layer_norm", "norm2"),
  *rules.linear("fc1", "mlp/up"),
  *rules.linear("fc2", "mlp/down"),
)
RULES = {
  "opt": (
    Rule("model.decoder.embed_tokens.weight", "decoder/embedding"),
    Rule("model.decoder.embed_positions.weight", "decoder/posemb"),
    *rules.linear("model.decoder.project_in", "decoder/embed_in"),
    *rules.linear("model.decoder.project_out", "decoder/embed_out"),
    *rules.under(_LAYER, "model.decoder.layers.{i}.", "decoder/blocks/*/"),
    *rules.norm("model.decoder.final_layer_norm", "decoder/norm"),
    Rule("lm_head.weight", "decoder/head", "v d -> d v"),
  )
}
TIED = (("lm_head.weight", "model.decoder.embed_tokens.weight"),)
# Files of the model without a head begin at the decoder.
_MAP = CkptMap(RULES["opt"], rename=((r"^decoder\.", "model.decoder."),), tied=TIED)
_OFFSET = 2  # Row of the first position in the table.


def decoder(cfg: Mapping[str, Any]) -> dict[str, Any]:
  """Decoder config of an `OPTConfig`."""
  f = fields.fields(
    cfg,
    vocab_size=50_272,
    hidden_size=768,
    num_hidden_layers=12,
    ffn_dim=3072,
    max_position_embeddings=2048,
    do_layer_norm_before=True,
    _remove_final_layer_norm=False,
    word_embed_proj_dim=None,
    num_attention_heads=12,
    activation_function="relu",
    enable_bias=True,
    layer_norm_elementwise_affine=True,
    tie_word_embeddings=True,
  )
  inner = f.word_embed_proj_dim
  return dict(
    kind="decoder",
    vocab=f.vocab_size,
    width=f.hidden_size,
    depth=f.num_hidden_layers,
    hidden=f.ffn_dim,
    heads=f.num_attention_heads,
    kv_heads=f.num_attention_heads,
    head_dim=f.hidden_size // f.num_attention_heads,
    tied=f.tie_word_embeddings,
    embed_scale=False,
    embed_dim=0 if inner in (None, f.hidden_size) else inner,
    posemb=f.max_position_embeddings + _OFFSET,
    posemb_offset=_OFFSET,
    rope_base=0.0,
    norm="layer" if f.layer_norm_elementwise_affine else "layer_bare",
    eps=1e-5,
    norm_after=not f.do_layer_norm_before,
    final_norm=f.do_layer_norm_before and not f._remove_final_layer_norm,
    act=fields.activation(f.activation_function),
    gated=False,
    bias=f.enable_bias,
  )


DECODERS = {"opt": decoder}
ENDS = {"opt": (2, 1)}
# Real tokens are numbered and padding is not, whatever the pass.
OPTIONS = {"opt": {"numbered": True}}


def opt(cfg: Mapping[str, Any]) -> System:
  """`OPTForCausalLM`."""
  model = dict(kind="lm", decoder=decoder(cfg))
  options = fields.ends(cfg, *ENDS["opt"]) | OPTIONS["opt"]
  return System(model, _MAP, "lm", options=options, refine=tying.refine)
