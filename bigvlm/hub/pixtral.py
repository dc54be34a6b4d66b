"""Pixtral (arXiv 2410.07073), a `LlavaForConditionalGeneration` of transformers with a tower of its
own, and Mistral 3 with vision, which merges its patches."""

from collections.abc import Mapping
from typing import Any

from bigvlm.ckpt import rules
from bigvlm.ckpt.rules import CkptMap, Rule
from bigvlm.hub import fields, llava, qwen2_vl, texts, tying
from bigvlm.hub.system import System

_LAYER = (
  *rules.norm("attention_norm", "norm1"),
  *rules.attention("attention", "attn"),
  *rules.norm("ffn_norm", "norm2"),
  *rules.gated("feed_forward", "mlp"),
)
_TOWER = (
  Rule("patch_conv.weight", "patch/kernel", "o c p q -> 1 p q c o"),
  *rules.norm("ln_pre", "pre_norm"),
  *rules.under(_LAYER, "transformer.layers.{i}.", "blocks/*/"),
)
_PROJECTOR = (
  *rules.norm("norm", "norm"),
  Rule("patch_merger.merging_layer.weight", "mix/kernel", "o (d m) -> m d o"),
  *rules.mlp("linear_", "mlp", "1", "2"),
)
# Other layouts to the hub's.
_RENAME = (
  (r"^model\.(?=(language_model|vision_tower|multi_modal_projector)\.)", ""),
  (r"^lm_head\.", "language_model.lm_head."),
  (r"^language_model\.(?!(model|lm_head)\.)", "language_model.model."),
)
# What transformers takes for sub-configs of Mistral 3 that are not there at all.
_VISION = dict(patch_size=14)
_TEXT = dict(
  hidden_size=5120,
  intermediate_size=32_768,
  num_hidden_layers=40,
  num_attention_heads=32,
  num_key_value_heads=8,
  head_dim=128,
  rms_norm_eps=1e-5,
  rope_theta=1e9,
  sliding_window=None,
  vocab_size=131_072,
)


def vision(cfg: Mapping[str, Any], layer: int) -> tuple[dict[str, Any], tuple[str, ...]]:
  """Encoder config of a `PixtralVisionConfig`, and regexes of the layers that are not read.

  Args:
    cfg: the config. layer: whose hidden states are read, -1 = the last.

  Raises:
    ValueError: several layers, or one that is not there.
  """
  f = fields.fields(
    cfg,
    hidden_size=1024,
    intermediate_size=4096,
    num_hidden_layers=24,
    num_attention_heads=16,
    hidden_act="gelu",
  )
  layer = layer[0] if isinstance(layer, (list, tuple)) and len(layer) == 1 else layer
  depth = f.num_hidden_layers
  if not isinstance(layer, int) or not -depth - 1 <= layer <= depth:
    raise ValueError(f"config.json: vision_feature_layer {layer} is no layer of {depth}")
  run = layer % (depth + 1)
  encoder = dict(
    kind="packed",
    width=f.hidden_size,
    depth=run,
    hidden=f.intermediate_size,
    heads=f.num_attention_heads,
    patch=fields.patch(cfg, 16),
    pre_norm=True,
    norm="rms_plain",
    eps=1e-5,
    act=fields.activation(f.hidden_act),
    gated=True,
    bias=False,
    rope_base=qwen2_vl.axial(cfg),
    rope_share="turns",
  )
  later = "|".join(str(n) for n in range(run, depth))
  return encoder, (rf"vision_tower\.transformer\.layers\.({later})\..*",) if later else ()


def _system(
  cfg: Mapping[str, Any],
  text: Mapping[str, Any],
  kind: str,
  encoder: dict[str, Any],
  connector: dict[str, Any],
  carry: tuple[str, ...],
  image_token: int,
) -> System:
  decoder = texts.body(text, kind)
  ckpt_map = CkptMap(
    (
      *rules.under(_TOWER, "vision_tower.", "encoders/image/"),
      *rules.under(_PROJECTOR, "multi_modal_projector.", "connector/"),
      *texts.under(text, "language_model.", kind),
    ),
    _RENAME,
    llava.TIED,
    (*carry, r".*\.rotary_emb\.inv_freq", r".*\.patch_positional_embedding\.inv_freq"),
  )
  tied = bool(cfg.get("tie_word_embeddings") or decoder["tied"])
  model = dict(
    kind="vlm",
    encoders=dict(image=encoder),
    connector=dict(kind="merger") | connector,
    decoder=decoder | dict(tied=tied),
  )
  options = dict(media="sizes", image_token=image_token) | texts.special_ids(cfg, text, kind)
  side = encoder["patch"] * encoder.get("block", 1)
  return System(model, ckpt_map, "vlm", (side, side), options=options, refine=tying.refine)


def pixtral(cfg: Mapping[str, Any]) -> System:
  """`LlavaForConditionalGeneration` with a tower of kind "pixtral".

  Raises:
    ValueError: features without the first patch, which no model of this kind has.
  """
  f = fields.fields(cfg, vision_feature_layer=-2, vision_feature_select_strategy="default")
  if f.vision_feature_select_strategy != "full":
    raise ValueError("config.json: a pixtral tower needs vision_feature_select_strategy 'full'")
  encoder, carry = vision(fields.sub(cfg, "vision_config"), f.vision_feature_layer)
  token = llava.token(cfg, "image", 32_000)
  text = fields.sub(cfg, "text_config")
  return _system(cfg, text, "llama", encoder, llava.projector(cfg), carry, token)


def llava_or_pixtral(cfg: Mapping[str, Any]) -> System:
  """`LlavaForConditionalGeneration`, whose vision config says which it is."""
  kind = fields.sub(cfg, "vision_config").get("model_type")
  return pixtral(cfg) if kind == "pixtral" else llava.llava(cfg)


def mistral3(cfg: Mapping[str, Any]) -> System:
  """`Mistral3ForConditionalGeneration`."""
  f = fields.fields(
    cfg,
    vision_feature_layer=-1,
    spatial_merge_size=2,
    projector_hidden_act="gelu",
    multimodal_projector_bias=False,
    tie_word_embeddings=True,
  )
  given, text = (
    default if cfg.get(name) is None else cfg[name]
    for name, default in (("vision_config", _VISION), ("text_config", _TEXT))
  )
  encoder, carry = vision(given, f.vision_feature_layer)
  encoder["block"] = f.spatial_merge_size
  connector = dict(
    merge=f.spatial_merge_size,
    norm="rms_plain",
    eps=texts.decoder(text, "mistral")["eps"],
    mix=encoder["width"],
    act=fields.activation(f.projector_hidden_act),
    bias=f.multimodal_projector_bias,
  )
  cfg = cfg | dict(tie_word_embeddings=f.tie_word_embeddings)
  token = llava.token(cfg, "image", 10)
  return _system(cfg, text, "mistral", encoder, connector, carry, token)
