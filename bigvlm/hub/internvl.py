"""InternVL 2.5 and 3 (arXiv 2412.05271, 2504.10479) of transformers."""

import math
from collections.abc import Mapping
from typing import Any

from bigvlm.ckpt import rules
from bigvlm.ckpt.rules import CkptMap, Rule
from bigvlm.hub import fields, texts, tying
from bigvlm.hub.system import System
from bigvlm.hub.text import BUFFERS
from bigvlm.utils import names

_LAYER = (
  *rules.norm("layernorm_before", "norm1"),
  *rules.attention("attention", "attn", "projection_layer"),
  *rules.norm("attention.q_norm", "attn/q_norm"),
  *rules.norm("attention.k_norm", "attn/k_norm"),
  Rule("lambda_1", "scale1"),
  *rules.norm("layernorm_after", "norm2"),
  *rules.mlp("mlp.", "mlp"),
  Rule("lambda_2", "scale2"),
)
_TOWER = (
  Rule("embeddings.cls_token", "cls"),
  *rules.linear("embeddings.patch_embeddings.projection", "patch", "o c p q -> p q c o"),
  Rule("embeddings.position_embeddings", ("cls_posemb", "posemb"), "", 1),
  *rules.under(_LAYER, "encoder.layer.{i}.", "blocks/*/"),
  *rules.norm("layernorm", "norm"),
)
_PROJECTOR = (
  *rules.norm("layer_norm", "norm"),
  *rules.linear("linear_1", "up"),
  *rules.linear("linear_2", "down"),
)
# Other layouts to the hub's.
_RENAME = (
  (r"^model\.(?=(language_model|vision_tower|multi_modal_projector)\.)", ""),
  (r"^lm_head\.", "language_model.lm_head."),
  (r"^language_model\.(?=(layers|embed_tokens|norm)\.)", "language_model.model."),
)
_TIED = (("language_model.lm_head.weight", "language_model.model.embed_tokens.weight"),)
_NORMS = {"layer_norm": "layer", "rms_norm": "rms_plain"}


def tower(cfg: Mapping[str, Any], layer: int) -> tuple[dict[str, Any], tuple[int, int], int]:
  """Encoder config, image size and unread layers of an `InternVLVisionConfig`.

  Args:
    cfg: the config. layer: `vision_feature_layer`.

  Raises:
    ValueError: a layer that there is not, or a position table that is no square.
  """
  f = fields.fields(
    cfg,
    hidden_size=1024,
    num_hidden_layers=24,
    num_attention_heads=16,
    attention_bias=False,
    use_qk_norm=False,
    intermediate_size=4096,
    hidden_act="gelu",
    norm_type="layer_norm",
    layer_norm_eps=1e-6,
    image_size=448,
    use_absolute_position_embeddings=True,
    layer_scale_init_value=0.1,
    use_mean_pooling=True,
  )
  # The last one is read behind the norm, if there is one, every other as it leaves its layer.
  depth = f.num_hidden_layers if layer == -1 else layer % (f.num_hidden_layers + 1)
  if not -f.num_hidden_layers <= layer <= f.num_hidden_layers or not depth:
    raise ValueError(
      f"config.json: vision_feature_layer is {layer}, but the encoder has {f.num_hidden_layers}"
    )
  patch, (height, width) = fields.patch(cfg, 14), fields.size(f.image_size)
  count = (height // patch) * (width // patch)
  side = math.isqrt(count)
  if side * side != count:
    raise ValueError(
      f"config.json: {height}x{width} pixels are {count} patches, which is no square"
    )
  places = f.use_absolute_position_embeddings
  encoder = dict(
    kind="vit",
    width=f.hidden_size,
    depth=depth,
    hidden=f.intermediate_size,
    heads=f.num_attention_heads,
    patch=patch,
    posemb="learn" if places else "none",
    resample="bicubic",
    cls=True,
    cls_posemb=places,
    norm=names.lookup("norm_type in config.json", f.norm_type, _NORMS),
    last_norm="layer",
    final_norm="none" if f.use_mean_pooling or layer != -1 else "tokens",
    eps=f.layer_norm_eps,
    act=fields.activation(f.hidden_act),
    bias=f.attention_bias,
    out_bias=True,
    mlp_bias=True,
    layer_scale=f.layer_scale_init_value or 1e-5,
    qk_joint="rms_plain" if f.use_qk_norm else "",
    qk_eps=1e-6,
    mean=(0.485, 0.456, 0.406),
    std=(0.229, 0.224, 0.225),
  )
  # The reference takes a table for a square whatever the pictures are.
  return encoder, (side * patch, side * patch), f.num_hidden_layers - depth


def internvl(cfg: Mapping[str, Any]) -> System:
  """`InternVLForConditionalGeneration`.

  Raises:
    ValueError: features with the class token or of several layers, or a downsampling by another
      number than 1 / n.
  """
  text = fields.sub(cfg, "text_config")
  top = fields.fields(
    cfg,
    image_token_id=151_667,
    downsample_ratio=0.5,
    projector_hidden_act="gelu",
    vision_feature_layer=-1,
    vision_feature_select_strategy="default",
    tie_word_embeddings=True,
  )
  if top.vision_feature_select_strategy != "default":
    found = top.vision_feature_select_strategy
    raise ValueError(f"config.json: vision_feature_select_strategy is {found!r}, not 'default'")
  if not isinstance(top.vision_feature_layer, int):
    raise ValueError("config.json: vision_feature_layer is no number; one layer is read")
  factor = round(1 / top.downsample_ratio)
  if factor * top.downsample_ratio != 1:
    raise ValueError(f"config.json: downsample_ratio {top.downsample_ratio} is not 1 / n")
  encoder, image_size, unread = tower(fields.sub(cfg, "vision_config"), top.vision_feature_layer)
  decoder = texts.body(text, "qwen2") | dict(tied=top.tie_word_embeddings)
  connector = dict(
    kind="pixel_shuffle",
    factor=factor,
    norm="layer",
    act=fields.activation(top.projector_hidden_act),
  )
  model = dict(kind="vlm", encoders=dict(image=encoder), connector=connector, decoder=decoder)
  options = dict(image_token=top.image_token_id) | texts.special_ids(cfg, text, "qwen2")
  ckpt = _map(text, encoder, unread)
  return System(model, ckpt, "vlm", image_size, options=options, refine=tying.refine)


def _map(text: Mapping[str, Any], encoder: Mapping[str, Any], unread: int) -> CkptMap:
  layers = (rf"vision_tower\.encoder\.layer\.{encoder['depth'] + i}\..*" for i in range(unread))
  carry = (r"vision_tower\.embeddings\.mask_token", *layers, *BUFFERS)
  if encoder["final_norm"] == "none":
    carry += (r"vision_tower\.layernorm\..*",)
  return CkptMap(
    (
      *rules.under(_TOWER, "vision_tower.", "encoders/image/"),
      *rules.under(_PROJECTOR, "multi_modal_projector.", "connector/"),
      *texts.under(text, "language_model.", "qwen2"),
    ),
    _RENAME,
    _TIED,
    carry,
  )
