"""AIMv2 (arXiv 2411.14402): the vision encoder and the dual encoder.

Files come in two layouts: that of transformers, and that of Apple's own code (apple/ml-aim, the
class `AIMv2Model`), which has one tensor for queries, keys and values.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

from bigvlm.ckpt import rules
from bigvlm.ckpt.rules import CkptMap, Rule
from bigvlm.ckpt.sources import Source
from bigvlm.hub import clip, fields
from bigvlm.hub.system import System

_LAYER = (
  Rule("rms_norm1.weight", "norm1/scale"),
  *rules.attention("attention", "attn", "out_proj"),
  Rule("rms_norm2.weight", "norm2/scale"),
  *rules.gated("ffn", "mlp"),
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
# Apple's layout: what is in both towers, then their own.
_BLOCK = (
  Rule("norm_1.weight", "norm1/scale"),
  *rules.joint("attn.qkv.", "attn", "attn.proj"),
  Rule("norm_2.weight", "norm2/scale"),
  *rules.mlp("mlp.", "mlp", "fc3", "fc2", "fc1"),
)
_TRUNK = (
  *rules.under(_BLOCK, "trunk.blocks.{i}.", "blocks/*/"),
  Rule("trunk.post_trunk_norm.weight", "norm/scale"),
)
_APPLE_VISION = (
  *rules.linear("preprocessor.patchifier.proj", "patch", "o c p q -> p q c o"),
  Rule("preprocessor.patchifier.norm.weight", "patch_norm/scale"),
  Rule("preprocessor.pos_embed", "posemb"),
  *_TRUNK,
  Rule("head.cls_token", "pool/probe"),
  *rules.linear("head.k", "pool/k", "(h d) i -> i h d", "(h d) -> h d"),
  *rules.linear("head.v", "pool/v", "(h d) i -> i h d", "(h d) -> h d"),
  *rules.linear("head.linear", "pool/out"),
)
_APPLE_TEXT = (
  Rule("preprocessor.text_embedding.weight", "embed/embedding"),
  Rule("preprocessor.positional_embedding", "posemb", "n d -> 1 n d"),
  *_TRUNK,
)
_APPLE_ENCODER = CkptMap(rules.under(_APPLE_VISION, "", "encoders/image/"))
_APPLE_DUAL = CkptMap(
  (
    *rules.under(_APPLE_VISION, "image_encoder.", "encoders/image/"),
    *rules.linear("image_projector", "encoders/image/head"),
    *rules.under(_APPLE_TEXT, "text_encoder.", "text/"),
    *rules.linear("text_projector", "text/head"),
    Rule("log_logit_scale", "t", "-> 1"),
  )
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


def apple(cfg: Mapping[str, Any]) -> System:
  """`AIMv2Model` of Apple's own code: the encoder, or with a `vision_config` the dual encoder.

  Its config does not say whether there is a pooling head or a position table: the tensors tell.
  They may have the names of transformers under such a config.
  """
  system = _as_apple(cfg, head=True, native=False)
  return dataclasses.replace(system, refine=functools.partial(_by_tensors, cfg))


def _by_tensors(cfg: Mapping[str, Any], system: System, source: Source) -> System:
  there = source.specs()
  head = any(name.endswith("head.cls_token") for name in there)
  tables = ("preprocessor.pos_embed", "position_embedding.weight")
  native = not any(name.endswith(tables) for name in there if not name.startswith("text_"))
  if any(name.endswith("trunk.post_trunk_norm.weight") for name in there):
    return _as_apple(cfg, head, native)
  return _build(cfg, head, native)


def _build(cfg: Mapping[str, Any], head: bool, native: bool) -> System:
  """The system of a config in the words of transformers, except for `head` and `native`."""
  found = dict(use_head=head, is_native=native)
  if "vision_config" not in cfg:
    return encoder({**cfg, **found})
  system = dual({**cfg, "vision_config": {**cfg["vision_config"], **found}})
  return dataclasses.replace(system, options=dict(causal=True))


def _as_apple(cfg: Mapping[str, Any], head: bool, native: bool) -> System:
  """The system of a config and tensors in Apple's words."""
  if "vision_config" not in cfg:
    system = _build(_translated(cfg), head, native)
    model, found = system.model, _APPLE_ENCODER
    towers = [(cfg, model["encoders"]["image"])]
  else:
    parts = {name: fields.sub(cfg, name) for name in ("vision_config", "text_config")}
    system = _build({**cfg, **{k: _translated(v) for k, v in parts.items()}}, head, native)
    model, found = system.model, _APPLE_DUAL
    towers = [(parts["vision_config"], model["encoders"]["image"])]
    towers += [(parts["text_config"], model["text"])]
  for given, tower in towers:  # There the bias of the output projection is not that of q, k and v.
    tower["out_bias"] = bool(given.get("use_bias", False))
  return dataclasses.replace(system, map=found)


def _translated(cfg: Mapping[str, Any]) -> dict[str, Any]:
  """A vision or text config of Apple's in the words of transformers.

  Raises:
    ValueError: several queries of the pooling head; no published checkpoint has them.
  """
  f = fields.fields(cfg, use_bias=False, max_context_length=77, num_queries=1)
  if f.num_queries != 1:
    raise ValueError(f"config.json: num_queries is {f.num_queries}; AIMv2 is read with 1 alone")
  out = dict(cfg) | dict(mlp_bias=f.use_bias, max_position_embeddings=f.max_context_length)
  return out | dict(hidden_act="silu")
