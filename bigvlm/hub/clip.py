"""CLIP (arXiv 2103.00020), MetaCLIP 1 and 2, and SigLIP (arXiv 2303.15343) of transformers."""

from collections.abc import Mapping
from typing import Any

from bigvlm.ckpt import rules
from bigvlm.ckpt.rules import CkptMap, Rule
from bigvlm.hub import fields
from bigvlm.hub.system import System

_LAYER = (
  *rules.norm("layer_norm1", "norm1"),
  *rules.attention("self_attn", "attn", "out_proj"),
  *rules.norm("layer_norm2", "norm2"),
  *rules.mlp("mlp.", "mlp"),
)
_LAYERS = rules.under(_LAYER, "encoder.layers.{i}.", "blocks/*/")

CLIP_VISION = (
  Rule("embeddings.class_embedding", "cls", "d -> 1 1 d"),
  *rules.linear("embeddings.patch_embedding", "patch", "o c p q -> p q c o"),
  Rule("embeddings.position_embedding.weight", ("cls_posemb", "posemb"), "n d -> 1 n d"),
  *rules.norm("pre_layrnorm", "pre_norm"),
  *_LAYERS,
  *rules.norm("post_layernorm", "norm"),
)
TEXT = (
  Rule("embeddings.token_embedding.weight", "embed/embedding"),
  Rule("embeddings.position_embedding.weight", "posemb", "n d -> 1 n d"),
  *_LAYERS,
  *rules.norm("final_layer_norm", "norm"),
)
SIGLIP_VISION = (
  *rules.linear("embeddings.patch_embedding", "patch", "o c p q -> p q c o"),
  Rule("embeddings.position_embedding.weight", "posemb", "n d -> 1 n d"),
  *_LAYERS,
  *rules.norm("post_layernorm", "norm"),
  Rule("head.probe", "pool/probe"),
  *rules.joint("head.attention.in_proj_", "pool/attn", "head.attention.out_proj"),
  *rules.norm("head.layernorm", "pool/norm"),
  *rules.mlp("head.mlp.", "pool/mlp"),
)
# Buffers in files of old versions.
BUFFERS = (r".*\.position_ids",)

_CLIP_DUAL = CkptMap(
  (
    *rules.under(CLIP_VISION, "vision_model.", "encoders/image/"),
    *rules.linear("visual_projection", "encoders/image/head"),
    *rules.under(TEXT, "text_model.", "text/"),
    *rules.linear("text_projection", "text/head"),
    Rule("logit_scale", "t", "-> 1"),
  ),
  carry=BUFFERS,
)
_CLIP_ENCODER = CkptMap(
  rules.under(CLIP_VISION, "vision_model.", "encoders/image/"),
  rename=((r"^(?!vision_model\.)", "vision_model."),),
  carry=BUFFERS,
)
SIGLIP_TEXT = (
  *rules.under(TEXT, "text_model.", "text/"),
  *rules.linear("text_model.head", "text/head"),
  Rule("logit_scale", "t"),
  Rule("logit_bias", "b"),
)
_SIGLIP_DUAL = CkptMap(
  (*rules.under(SIGLIP_VISION, "vision_model.", "encoders/image/"), *SIGLIP_TEXT),
  carry=BUFFERS,
)
_SIGLIP_ENCODER = CkptMap(
  rules.under(SIGLIP_VISION, "vision_model.", "encoders/image/"),
  rename=((r"^(?!vision_model\.)", "vision_model."),),
  carry=BUFFERS,
)


def stack(f: Any) -> dict[str, Any]:
  """The fields of a tower that CLIP, SigLIP and ViT configs have under the same names."""
  return dict(
    width=f.hidden_size,
    depth=f.num_hidden_layers,
    hidden=f.intermediate_size,
    heads=f.num_attention_heads,
    act=fields.activation(f.hidden_act),
    eps=f.layer_norm_eps,
  )


def clip_vision(cfg: Mapping[str, Any]) -> tuple[dict[str, Any], tuple[int, int]]:
  """Encoder config and image size of a `CLIPVisionConfig`."""
  f = fields.fields(
    cfg,
    hidden_size=768,
    intermediate_size=3072,
    num_hidden_layers=12,
    num_attention_heads=12,
    image_size=224,
    hidden_act="quick_gelu",
    layer_norm_eps=1e-5,
  )
  encoder = dict(
    kind="vit",
    **stack(f),
    patch=fields.patch(cfg, 32),
    patch_bias=False,
    resample="bicubic",
    cls=True,
    cls_posemb=True,
    keep_cls=True,
    pre_norm=True,
    final_norm="pooled",
    pool="tok",
  )
  return encoder, fields.size(f.image_size)


def siglip_vision(cfg: Mapping[str, Any]) -> tuple[dict[str, Any], tuple[int, int]]:
  """Encoder config and image size of a `SiglipVisionConfig`."""
  f = fields.fields(
    cfg,
    hidden_size=768,
    intermediate_size=3072,
    num_hidden_layers=12,
    num_attention_heads=12,
    image_size=224,
    hidden_act="gelu_pytorch_tanh",
    layer_norm_eps=1e-6,
    vision_use_head=True,
  )
  encoder = dict(
    kind="vit",
    **stack(f),
    patch=fields.patch(cfg, 16),
    resample="bicubic",
    pool="map" if f.vision_use_head else "none",
  )
  return encoder, fields.size(f.image_size)


def _part(cfg: Mapping[str, Any], name: str) -> dict[str, Any]:
  """A sub-config of CLIP.

  Older files hold it twice. In the reference `NAME_dict` wins, also where it omits a field, which
  then has its default whatever NAME says.
  """
  older = cfg.get(f"{name}_dict")
  return fields.sub(cfg, name) if older is None else dict(older)


def clip(cfg: Mapping[str, Any], *, legacy_eos: bool = True) -> System:
  """`CLIPModel`; MetaCLIP 1 is one too.

  Args:
    cfg: `config.json`.
    legacy_eos: an `eos_token_id` of 2 means the highest id of a row.
  """
  top = fields.fields(cfg, projection_dim=512)
  encoder, image_size = clip_vision(_part(cfg, "vision_config"))
  f = fields.fields(
    _part(cfg, "text_config"),
    vocab_size=49_408,
    hidden_size=512,
    intermediate_size=2048,
    num_hidden_layers=12,
    num_attention_heads=8,
    max_position_embeddings=77,
    hidden_act="quick_gelu",
    layer_norm_eps=1e-5,
    eos_token_id=49_407,
  )
  text = dict(
    kind="text_tower",
    **stack(f),
    vocab=f.vocab_size,
    length=f.max_position_embeddings,
    out_dim=top.projection_dim,
    head_bias=False,
    masked=True,
    pool="highest" if legacy_eos and f.eos_token_id == 2 else "eos",
    eos=f.eos_token_id,
  )
  encoder |= dict(out_dim=top.projection_dim, head_bias=False)
  model = dict(
    kind="two_tower",
    encoders=dict(image=encoder),
    text=text,
    bias_init=None,
    temperature_init=1 / 0.07,
  )
  return System(
    model,
    _CLIP_DUAL,
    "dual",
    image_size,
    f.max_position_embeddings,
    dict(causal=True),
  )


def metaclip_2(cfg: Mapping[str, Any]) -> System:
  """`MetaClip2Model`: CLIP whose end token is what its number says, 2 included."""
  return clip(cfg, legacy_eos=False)


def siglip(cfg: Mapping[str, Any]) -> System:
  """`SiglipModel`."""
  encoder, image_size = siglip_vision(fields.sub(cfg, "vision_config"))
  text = siglip_text(fields.sub(cfg, "text_config"))
  model = dict(kind="two_tower", encoders=dict(image=encoder), text=text)
  return System(model, _SIGLIP_DUAL, "dual", image_size, text["length"])


def siglip_text(cfg: Mapping[str, Any]) -> dict[str, Any]:
  """Tower config of a `SiglipTextConfig`."""
  f = fields.fields(
    cfg,
    vocab_size=32_000,
    hidden_size=768,
    intermediate_size=3072,
    num_hidden_layers=12,
    num_attention_heads=12,
    max_position_embeddings=64,
    hidden_act="gelu_pytorch_tanh",
    layer_norm_eps=1e-6,
    projection_size=None,
  )
  return dict(
    kind="text_tower",
    **stack(f),
    vocab=f.vocab_size,
    length=f.max_position_embeddings,
    out_dim=f.projection_size or f.hidden_size,
  )


def clip_encoder(cfg: Mapping[str, Any]) -> System:
  """`CLIPVisionModel`."""
  encoder, image_size = clip_vision(cfg)
  return System(
    dict(kind="encoder", encoders=dict(image=encoder)), _CLIP_ENCODER, "encoder", image_size
  )


def siglip_encoder(cfg: Mapping[str, Any]) -> System:
  """`SiglipVisionModel`."""
  encoder, image_size = siglip_vision(cfg)
  return System(
    dict(kind="encoder", encoders=dict(image=encoder)), _SIGLIP_ENCODER, "encoder", image_size
  )
