"""AIMv2 (arXiv 2411.14402) of transformers: the vision encoder and the dual encoder."""

from collections.abc import Mapping
from typing import Any

from bigvlm.ckpt import rules
from bigvlm.ckpt.rules import CkptMap, Rule
from bigvlm.hub import clip, fields
from bigvlm.hub.system import System

_LAYER = (
  Rule("rms_norm1.weight", "norm1/scale"),
  *rules.attention(
    "attention.q_proj", "attention.k_proj", "attention.v_proj", "attention.out_proj", "attn"
  ),
  Rule("rms_norm2.weight", "norm2/scale"),
  *rules.linear("ffn.gate_proj", "mlp/gate"),
  *rules.linear("ffn.up_proj", "mlp/up"),
  *rules.linear("ffn.down_proj", "mlp/down"),
)
_LAYERS = rules.under(_LAYER, "encoder.layers.{i}.", "blocks/*/")
_VISION = (
  *rules.linear("embeddings.patch_embed", "patch", "o c p q -> p q c o"),
  Rule("embeddings.rms_norm.weight", "patch_norm/scale"),
  Rule("embeddings.position_embedding.weight", "posemb", "n d -> 1 n d"),
  *_LAYERS,
  Rule("rms_norm.weight", "norm/scale"),
  Rule("head.cls_token", "pool/probe"),
  *rules.linear("head.k_proj", "pool/k", "(h d) i -> i h d", "(h d) -> h d"),
  *rules.linear("head.v_proj", "pool/v", "(h d) i -> i h d", "(h d) -> h d"),
  *rules.linear("head.output_proj", "pool/out"),
)
_TEXT = (
  Rule("embeddings.token_embedding.weight", "embed/embedding"),
  Rule("embeddings.position_embedding.weight", "posemb", "n d -> 1 n d"),
  *_LAYERS,
  Rule("rms_norm.weight", "norm/scale"),
)
_ENCODER = CkptMap(rules.under(_VISION, "", "encoders/image/"), carry=clip.BUFFERS)
_DUAL = CkptMap(
  (
    *rules.under(_VISION, "vision_model.", "encoders/image/"),
    *rules.linear("visual_projection", "encoders/image/head"),
    *rules.under(_TEXT, "text_model.", "text/"),
    *rules.linear("text_projection", "text/head"),
    Rule("logit_scale", "t", "-> 1"),
  ),
  carry=clip.BUFFERS,
)
_COMMON = dict(
  num_hidden_layers=24,
  hidden_act="silu",
  rms_norm_eps=1e-5,
  qkv_bias=False,
  mlp_bias=False,
)


def _stack(f: Any) -> dict[str, Any]:
  return dict(
    width=f.hidden_size,
    depth=f.num_hidden_layers,
    hidden=f.intermediate_size,
    heads=f.num_attention_heads,
    act=fields.activation(f.hidden_act),
    eps=f.rms_norm_eps,
    norm="rms_plain",
    gated=True,
    bias=f.qkv_bias,
    mlp_bias=f.mlp_bias,
  )


def vision(cfg: Mapping[str, Any]) -> tuple[dict[str, Any], tuple[int, int]]:
  """Encoder config and image size of an `Aimv2VisionConfig`."""
  f = fields.fields(
    cfg,
    **_COMMON,
    hidden_size=1024,
    intermediate_size=2816,
    num_attention_heads=8,
    image_size=224,
    use_head=True,
    is_native=False,
  )
  built = dict(
    kind="vit",
    **_stack(f),
    patch=fields.patch(cfg, 14),
    posemb="sincos2d_aim" if f.is_native else "learn",
    resample="bicubic",
    patch_norm=True,
    pool="probe" if f.use_head else "none",
  )
  return built, fields.size(f.image_size)


def encoder(cfg: Mapping[str, Any]) -> System:
  """`Aimv2VisionModel`."""
  built, image_size = vision(cfg)
  return System(dict(kind="encoder", encoders=dict(image=built)), _ENCODER, "encoder", image_size)


def dual(cfg: Mapping[str, Any]) -> System:
  """`Aimv2Model`. Its text tower is causal only where there is an attention mask.

  Raises:
    ValueError: a vision tower without its pooling head.
  """
  top = fields.fields(cfg, projection_dim=512, max_logit_scale=100.0)
  built, image_size = vision(fields.sub(cfg, "vision_config"))
  if built["pool"] == "none":
    raise ValueError("config.json: vision_config.use_head is false; Aimv2Model needs the head")
  f = fields.fields(
    fields.sub(cfg, "text_config"),
    **_COMMON | dict(num_hidden_layers=12),
    vocab_size=49_408,
    hidden_size=768,
    intermediate_size=2048,
    num_attention_heads=6,
    max_position_embeddings=77,
    eos_token_id=49_407,
  )
  text = dict(
    kind="text_tower",
    **_stack(f),
    vocab=f.vocab_size,
    length=f.max_position_embeddings,
    out_dim=top.projection_dim,
    head_bias=False,
    masked=True,
    pool="eos",
    eos=f.eos_token_id,
  )
  built |= dict(out_dim=top.projection_dim, head_bias=False)
  model = dict(
    kind="two_tower",
    encoders=dict(image=built),
    text=text,
    bias_init=None,
    temperature_init=1 / 0.07,
    scale_range=(1.0, top.max_logit_scale),
  )
  options = dict(causal="masked")
  return System(model, _DUAL, "dual", image_size, f.max_position_embeddings, options)
