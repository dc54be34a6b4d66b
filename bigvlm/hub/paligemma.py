"""PaliGemma (arXiv 2407.07726) and PaliGemma 2 (2412.03555) of transformers."""

from collections.abc import Mapping
from typing import Any

from bigvlm.ckpt import rules
from bigvlm.ckpt.rules import CkptMap
from bigvlm.hub import clip, fields, gemma, texts
from bigvlm.hub.system import System
from bigvlm.hub.text import BUFFERS
from bigvlm.utils import names

# What transformers takes for a sub-config that is not there at all.
_VISION = dict(
  hidden_size=1152,
  intermediate_size=4096,
  num_hidden_layers=27,
  num_attention_heads=16,
  patch_size=14,
  image_size=224,
)
_TEXT = dict(
  hidden_size=2048,
  intermediate_size=16_384,
  num_hidden_layers=18,
  num_attention_heads=8,
  num_key_value_heads=1,
  vocab_size=257_152,
)
# Other layouts to the hub's, for every SigLIP tower with a Gemma behind it.
RENAME = (
  (r"^model\.(?=(language_model|vision_tower|multi_modal_projector)\.)", ""),
  (r"^lm_head\.", "language_model.lm_head."),
  (r"^language_model\.(?=(layers|embed_tokens|norm)\.)", "language_model.model."),
  (r"^vision_tower\.(?!vision_model\.)", "vision_tower.vision_model."),
)
TIED = (("language_model.lm_head.weight", "language_model.model.embed_tokens.weight"),)
# The pooling head, which a decoder has no use for.
CARRY = (r"vision_tower\.vision_model\.head\..*", *BUFFERS)
TOWER = rules.under(clip.SIGLIP_VISION, "vision_tower.vision_model.", "encoders/image/")

_MAPS = {
  kind: CkptMap(
    (
      *TOWER,
      *rules.linear("multi_modal_projector.linear", "connector/linear"),
      *rules.under(gemma.TEXTS[kind].rules, "language_model.", ""),
    ),
    RENAME,
    TIED,
    CARRY,
  )
  for kind in ("gemma", "gemma2")
}


def tower(cfg: Mapping[str, Any] | None, default: Mapping[str, Any]) -> tuple[dict, tuple]:
  """Encoder config, without a head, and image size of a `vision_config`; None = `default`.

  Raises:
    ValueError: it is no SigLIP.
  """
  cfg = default if cfg is None else cfg
  kind = cfg.get("model_type", "siglip_vision_model")
  if kind != "siglip_vision_model":
    raise ValueError(names.unknown("vision_config.model_type", kind, ("siglip_vision_model",)))
  encoder, size = clip.siglip_vision(cfg)
  return encoder | dict(pool="none"), size


def image_token(cfg: Mapping[str, Any], default: int) -> int:
  """Id of the placeholders of an image."""
  return cfg.get("image_token_index", cfg.get("image_token_id", default))


def paligemma(cfg: Mapping[str, Any]) -> System:
  """`PaliGemmaForConditionalGeneration`.

  Raises:
    ValueError: a text or vision model that it is not made of.
  """
  encoder, image_size = tower(cfg.get("vision_config"), _VISION)
  text = cfg.get("text_config")
  text = _TEXT if text is None else text
  kind = text.get("model_type", "gemma")
  ckpt_map = names.lookup("text_config.model_type", kind, _MAPS)
  top = fields.fields(cfg, tie_word_embeddings=True)
  # A window hides nothing of the prefix from itself.
  decoder = gemma.TEXTS[kind].decoder(text) | dict(
    tied=top.tie_word_embeddings, window_cuts_blocks=False
  )
  model = dict(
    kind="vlm", encoders=dict(image=encoder), connector=dict(kind="linear"), decoder=decoder
  )
  options = dict(image_token=image_token(cfg, 256_000), types="prefix", first_position=1)
  options |= texts.special_ids(cfg, text, kind)
  return System(model, ckpt_map, "vlm", image_size, options=options)
