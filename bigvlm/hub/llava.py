"""LLaVA 1.5 (arXiv 2310.03744), BakLLaVA and ViP-LLaVA (arXiv 2312.00784) of transformers, and what
their relatives share."""

from collections.abc import Mapping
from typing import Any

from bigvlm.ckpt import rules
from bigvlm.ckpt.rules import CkptMap, Rule
from bigvlm.hub import fields, texts, towers
from bigvlm.hub.system import System
from bigvlm.hub.text import BUFFERS

# What transformers takes for a vision config that is not there at all, but for its image size.
CLIP_L = dict(
  hidden_size=1024,
  intermediate_size=4096,
  num_hidden_layers=24,
  num_attention_heads=16,
  patch_size=14,
)
_PARTS = "language_model|vision_tower|image_tower|video_tower|multi_modal_projector|image_newline"
# Other layouts to the hub's.
RENAME = (
  (rf"^model\.(?=({_PARTS})\b)", ""),
  (r"^lm_head\.", "language_model.lm_head."),
  (r"^language_model\.(?!(model|lm_head)\.)", "language_model.model."),
  (r"^(vision|image|video)_tower\.(?!vision_model\.)", r"\1_tower.vision_model."),
)
TIED = (("language_model.lm_head.weight", "language_model.model.embed_tokens.weight"),)
_PROJECTOR = (
  *rules.norm("multi_modal_projector.projector_layernorm", "connector/projector/norm"),
  *rules.mlp("multi_modal_projector.linear_", "connector/projector/mlp", "1", "2"),
  Rule("image_newline", "connector/newline"),
)


def vision(
  cfg: Mapping[str, Any],
  layer: int | list[int] = -2,
  select: str = "default",
  default: Mapping[str, Any] | None = None,
) -> towers.Tower:
  """The tower of a config with `vision_feature_layer` and `vision_feature_select_strategy`.

  Args:
    cfg: the config. layer, select: their defaults.
    default: what a config that is not there at all stands for; None = CLIP L/14 at 336 pixels.
  """
  f = fields.fields(
    cfg,
    vision_feature_layer=cfg.get("vision_feature_layers", layer),
    vision_feature_select_strategy=select,
  )
  default = CLIP_L | dict(image_size=336) if default is None else default
  given = cfg.get("vision_config")
  kind = default.get("model_type", "clip_vision_model")
  return towers.tower(
    default if given is None else given,
    f.vision_feature_layer,
    f.vision_feature_select_strategy,
    kind,
  )


def projector(cfg: Mapping[str, Any]) -> dict[str, Any]:
  """Fields of the connector: `projector_hidden_act` and `multimodal_projector_bias`."""
  f = fields.fields(cfg, projector_hidden_act="gelu", multimodal_projector_bias=True)
  return dict(act=fields.activation(f.projector_hidden_act), bias=f.multimodal_projector_bias)


def system(
  cfg: Mapping[str, Any],
  tower: towers.Tower,
  connector: Mapping[str, Any],
  *,
  names: Mapping[str, str] | None = None,
  text: str = "llama",
  ties: bool = False,
  **options: Any,
) -> System:
  """A tower, a connector with a projector, and a text model.

  Args:
    cfg: the config. tower, connector: their configs.
    names: encoder -> stored name, all of them like `tower`; None = "image" is `vision_tower`.
    text: `model_type` of a text config that names none.
    ties: whether a text config that ties its embeddings ties them here.
    options: of the inputs.
  """
  inner = fields.sub(cfg, "text_config")
  decoder = texts.body(inner, text)
  top = fields.fields(cfg, tie_word_embeddings=False)
  decoder["tied"] = top.tie_word_embeddings or ties and decoder["tied"]
  names = {"image": "vision_tower"} if names is None else names
  carry, found = BUFFERS, ()
  for encoder, stored in names.items():
    found += rules.under(tower.rules, f"{stored}.vision_model.", f"encoders/{encoder}/")
    carry += tower.carry(f"{stored}.vision_model.")
  ckpt_map = CkptMap(
    (*found, *_PROJECTOR, *texts.under(inner, "language_model.", text)), RENAME, TIED, carry
  )
  encoders = {encoder: dict(tower.encoder) for encoder in names}
  model = dict(kind="vlm", encoders=encoders, connector=dict(connector), decoder=decoder)
  options |= texts.special_ids(cfg, inner, text)
  return System(model, ckpt_map, "vlm", tower.image_size, options=options)


def token(cfg: Mapping[str, Any], kind: str, default: int) -> int:
  """Id of the placeholders of "image" or "video"."""
  return cfg.get(f"{kind}_token_index", cfg.get(f"{kind}_token_id", default))


def llava(cfg: Mapping[str, Any]) -> System:
  """`LlavaForConditionalGeneration`."""
  tower = vision(cfg)
  connector = dict(kind="mlp", front=tower.front, skip=tower.skip, **projector(cfg))
  return system(cfg, tower, connector, ties=True, image_token=token(cfg, "image", 32_000))


def vipllava(cfg: Mapping[str, Any]) -> System:
  """`VipLlavaForConditionalGeneration`: several layers, and a norm in front of the projector."""
  f = fields.fields(cfg, projector_hidden_act="gelu", projector_layernorm_eps=1e-5)
  tower = vision(cfg | dict(vision_feature_select_strategy="default"), [-2, -5, -8, -11, 6])
  connector = dict(
    kind="mlp",
    act=fields.activation(f.projector_hidden_act),
    norm="layer",
    eps=f.projector_layernorm_eps,
    front=tower.front,
    skip=tower.skip,
  )
  return system(cfg, tower, connector, image_token=token(cfg, "image", 32_000))
