"""Which `config.json` is which family: the registry of `bigvlm.hub`."""

from collections.abc import Mapping
from typing import Any

from bigvlm.hub import aimv2, clip, dinov2, gemma, gemma3, paligemma, siglip2, t5, vit
from bigvlm.hub.system import System
from bigvlm.utils import names

# Class in `architectures` -> reader of its config.
ARCHITECTURES = {
  "Aimv2Model": aimv2.dual,
  "Aimv2VisionModel": aimv2.encoder,
  "CLIPModel": clip.clip,
  "CLIPVisionModel": clip.clip_encoder,
  "Dinov2ForImageClassification": dinov2.classifier,
  "Dinov2Model": dinov2.encoder,
  "Gemma2ForCausalLM": gemma.gemma2,
  "Gemma3ForCausalLM": gemma.gemma3_text,
  "Gemma3ForConditionalGeneration": gemma3.gemma3,
  "GemmaForCausalLM": gemma.gemma,
  "MT5ForConditionalGeneration": t5.mt5,
  "MetaClip2Model": clip.metaclip_2,
  "MetaClip2VisionModel": clip.clip_encoder,
  "PaliGemmaForConditionalGeneration": paligemma.paligemma,
  "Siglip2Model": siglip2.dual,
  "Siglip2VisionModel": siglip2.encoder,
  "SiglipModel": clip.siglip,
  "SiglipVisionModel": clip.siglip_encoder,
  "T5ForConditionalGeneration": t5.t5,
  "ViTForImageClassification": vit.classifier,
  "ViTModel": vit.encoder,
}
# `model_type` -> class, for a config without `architectures`.
MODEL_TYPES = {
  "aimv2": "Aimv2Model",
  "aimv2_vision_model": "Aimv2VisionModel",
  "clip": "CLIPModel",
  "clip_vision_model": "CLIPVisionModel",
  "dinov2": "Dinov2Model",
  "gemma": "GemmaForCausalLM",
  "gemma2": "Gemma2ForCausalLM",
  "gemma3": "Gemma3ForConditionalGeneration",
  "gemma3_text": "Gemma3ForCausalLM",
  "metaclip_2": "MetaClip2Model",
  "metaclip_2_vision_model": "MetaClip2VisionModel",
  "mt5": "MT5ForConditionalGeneration",
  "paligemma": "PaliGemmaForConditionalGeneration",
  "siglip": "SiglipModel",
  "siglip2": "Siglip2Model",
  "siglip2_vision_model": "Siglip2VisionModel",
  "siglip_vision_model": "SiglipVisionModel",
  "t5": "T5ForConditionalGeneration",
  "vit": "ViTModel",
}


def system(cfg: Mapping[str, Any], where: str) -> System:
  """The system that a `config.json` describes.

  Args:
    cfg: its content.
    where: its path, for messages.

  Raises:
    ValueError: an architecture that is not in the table; lists those that are.
  """
  found = list(cfg.get("architectures") or [])
  if not found and cfg.get("model_type") in MODEL_TYPES:
    found = [MODEL_TYPES[cfg["model_type"]]]
  if not found:
    raise ValueError(
      f"{where} names neither `architectures` nor a known `model_type` "
      f"({cfg.get('model_type')!r}); known: {', '.join(sorted(MODEL_TYPES))}"
    )
  if found[0] not in ARCHITECTURES:
    unknown = names.unknown("architecture", found[0], ARCHITECTURES)
    raise ValueError(f"{where}: {unknown}. To add one: docs/adding_a_system.md")
  return ARCHITECTURES[found[0]](cfg)
