"""DINOv2 (arXiv 2304.07193) of transformers: encoder and image classifier."""

import math
from collections.abc import Mapping
from typing import Any

from bigvlm.ckpt import rules
from bigvlm.ckpt.rules import CkptMap, Rule
from bigvlm.hub import clip, fields, vit
from bigvlm.hub.system import System

_LAYER = (
  *rules.norm("norm1", "norm1"),
  *vit.ATTENTION,
  Rule("layer_scale1.lambda1", "scale1"),
  *rules.norm("norm2", "norm2"),
  Rule("layer_scale2.lambda1", "scale2"),
)
_MLP = rules.mlp("mlp.", "mlp")
_SWIGLU = (
  Rule("mlp.weights_in.weight", ("mlp/gate/kernel", "mlp/up/kernel"), "o i -> i o"),
  Rule("mlp.weights_in.bias", ("mlp/gate/bias", "mlp/up/bias")),
  *rules.linear("mlp.weights_out", "mlp/down"),
)


def _maps(mlp: tuple[Rule, ...]) -> tuple[CkptMap, CkptMap]:
  """Maps of the encoder and of the classifier."""
  tower = (
    *vit.EMBEDDINGS,
    *rules.under((*_LAYER, *mlp), "encoder.layer.{i}.", "blocks/*/"),
    *rules.norm("layernorm", "norm"),
  )
  head = rules.linear("classifier", "encoders/image/head")
  names = vit.ATTENTION_NAMES
  return (
    CkptMap(
      rules.under(tower, "", "encoders/image/"),
      rename=((r"^dinov2\.", ""), *names),
      carry=vit.CARRY,
    ),
    CkptMap(
      (*rules.under(tower, "dinov2.", "encoders/image/"), *head), rename=names, carry=vit.CARRY
    ),
  )


# By `use_swiglu_ffn`.
_MAPS = {False: _maps(_MLP), True: _maps(_SWIGLU)}


def _tower(cfg: Mapping[str, Any]) -> tuple[dict[str, Any], tuple[int, int], bool]:
  f = fields.fields(
    cfg,
    hidden_size=768,
    num_hidden_layers=12,
    num_attention_heads=12,
    mlp_ratio=4,
    hidden_act="gelu",
    layer_norm_eps=1e-6,
    image_size=224,
    qkv_bias=True,
    layerscale_value=1.0,
    use_swiglu_ffn=False,
    head_dim=0,
  )
  f.intermediate_size = int(f.hidden_size * f.mlp_ratio)
  patch = fields.patch(cfg, 14)
  gated = bool(f.use_swiglu_ffn)
  if gated:
    # Two thirds, so that three matrices have the parameters of two; a multiple of 8.
    f.intermediate_size = (int(f.intermediate_size * 2 / 3) + 7) // 8 * 8
    f.hidden_act = "silu"
  built = dict(
    kind="vit",
    **clip.stack(f),
    patch=patch,
    head_dim=f.head_dim,
    gated=gated,
    bias=f.qkv_bias,
    out_bias=True,
    mlp_bias=True,
    layer_scale=f.layerscale_value or 1.0,
    resample="bicubic",
    cls=True,
    cls_posemb=True,
    keep_cls=True,
    pool="tok",
  )
  height, width = fields.size(f.image_size)
  # The reference takes its table for a square one, whatever shape the images had.
  side = math.isqrt((height // patch) * (width // patch))
  if side**2 != (height // patch) * (width // patch):
    raise ValueError(
      f"config.json: image_size {height}x{width} makes {height // patch}x{width // patch} "
      "positions, whose number is not a square; the reference cannot resize such a table"
    )
  return built, (side * patch, side * patch), gated


def encoder(cfg: Mapping[str, Any]) -> System:
  """`Dinov2Model`.

  Raises:
    ValueError: an image size whose number of patches is not a square.
  """
  built, image_size, gated = _tower(cfg)
  model = dict(kind="encoder", encoders=dict(image=built))
  return System(model, _MAPS[gated][0], "encoder", image_size)


def classifier(cfg: Mapping[str, Any]) -> System:
  """`Dinov2ForImageClassification`: a linear map of the class token and the mean of the patches.

  Raises:
    ValueError: as `encoder`.
  """
  built, image_size, gated = _tower(cfg)
  built |= dict(pool="tok_gap", out_dim=fields.labels(cfg))
  model = dict(kind="encoder", encoders=dict(image=built))
  return System(model, _MAPS[gated][1], "encoder", image_size, options=dict(classifier=True))
