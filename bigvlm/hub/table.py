"""Which `config.json` is which family: the registry of `bigvlm.hub`."""

import re
from collections.abc import Mapping
from typing import Any

from bigvlm.hub import (
  aimv2,
  blip2,
  bodies,
  clip,
  deepseek_vl,
  dinov2,
  fuyu,
  gemma3,
  idefics,
  idefics2,
  idefics3,
  instructblip,
  internvl,
  llava,
  llava_next,
  mllama,
  paligemma,
  pixtral,
  qwen2_5_vl,
  qwen2_vl,
  siglip2,
  t5,
  texts,
  video_llama_3,
  video_llava,
  vit,
)
from bigvlm.hub.system import System
from bigvlm.utils import names

_TEXTS = texts.TEXTS
# Class in `architectures` -> reader of its config.
ARCHITECTURES = {
  "Aimv2Model": aimv2.dual,
  "Aimv2VisionModel": aimv2.encoder,
  "Blip2ForConditionalGeneration": blip2.blip2,
  "Blip2ForImageTextRetrieval": blip2.retrieval,
  "CLIPModel": clip.clip,
  "CLIPVisionModel": clip.clip_encoder,
  "DeepseekVLForConditionalGeneration": deepseek_vl.deepseek_vl,
  "DeepseekVLHybridForConditionalGeneration": deepseek_vl.hybrid,
  "Dinov2ForImageClassification": dinov2.classifier,
  "Dinov2Model": dinov2.encoder,
  "FuyuForCausalLM": fuyu.fuyu,
  "Gemma2ForCausalLM": _TEXTS["gemma2"].read,
  "Gemma3ForCausalLM": _TEXTS["gemma3_text"].read,
  "Gemma3ForConditionalGeneration": gemma3.gemma3,
  "GemmaForCausalLM": _TEXTS["gemma"].read,
  "Idefics2ForConditionalGeneration": idefics2.idefics2,
  "Idefics3ForConditionalGeneration": idefics3.idefics3,
  "IdeficsForVisionText2Text": idefics.idefics,
  "InstructBlipForConditionalGeneration": instructblip.image,
  "InstructBlipVideoForConditionalGeneration": instructblip.video,
  "InternVLForConditionalGeneration": internvl.internvl,
  "LlamaForCausalLM": _TEXTS["llama"].read,
  "LlavaForConditionalGeneration": pixtral.llava_or_pixtral,
  "LlavaNextForConditionalGeneration": llava_next.llava_next,
  "LlavaNextVideoForConditionalGeneration": llava_next.llava_next_video,
  "LlavaOnevisionForConditionalGeneration": llava_next.llava_onevision,
  "MT5EncoderModel": t5.mt5_encoder,
  "MT5ForConditionalGeneration": t5.mt5,
  "MetaClip2Model": clip.metaclip_2,
  "MetaClip2VisionModel": clip.clip_encoder,
  "Mistral3ForConditionalGeneration": pixtral.mistral3,
  "MistralForCausalLM": _TEXTS["mistral"].read,
  "MllamaForCausalLM": mllama.text,
  "MllamaForConditionalGeneration": mllama.mllama,
  "OPTForCausalLM": _TEXTS["opt"].read,
  "PaliGemmaForConditionalGeneration": paligemma.paligemma,
  "PersimmonForCausalLM": _TEXTS["persimmon"].read,
  "PhiForCausalLM": _TEXTS["phi"].read,
  "Qwen2ForCausalLM": _TEXTS["qwen2"].read,
  "Qwen2VLForConditionalGeneration": qwen2_vl.qwen2_vl,
  "Qwen2_5_VLForConditionalGeneration": qwen2_5_vl.qwen2_5_vl,
  "Siglip2Model": siglip2.dual,
  "Siglip2VisionModel": siglip2.encoder,
  "SiglipModel": clip.siglip,
  "SiglipVisionModel": clip.siglip_encoder,
  "SmolVLMForConditionalGeneration": idefics3.smolvlm,
  "T5EncoderModel": t5.t5_encoder,
  "T5ForConditionalGeneration": t5.t5,
  "UMT5EncoderModel": t5.umt5_encoder,
  "UMT5ForConditionalGeneration": t5.umt5,
  "ViTForImageClassification": vit.classifier,
  "ViTModel": vit.encoder,
  "VideoLlama3ForConditionalGeneration": video_llama_3.video_llama_3,
  "VideoLlavaForConditionalGeneration": video_llava.video_llava,
  "VipLlavaForConditionalGeneration": llava.vipllava,
}
# Without a head such a class is called "...Model", and these otherwise or not at all.
_HEADS = re.compile("For(CausalLM|ConditionalGeneration|VisionText2Text)$")
_BODIES = {"Gemma3ForCausalLM": "Gemma3TextModel", "MllamaForCausalLM": None}
_BODIES |= dict.fromkeys(name for name in ARCHITECTURES if name.startswith(("Blip2", "Instruct")))
# Models without a head -> reader of the same with one.
BODIES = {
  _BODIES.get(name, _HEADS.sub("Model", name)): read
  for name, read in ARCHITECTURES.items()
  if _HEADS.search(name) and _BODIES.get(name, name)
}
# Files of these are read and written back, but no model is described so: bodies, and a class that
# is not transformers'.
OTHERS = {name: bodies.body(read) for name, read in BODIES.items()} | {"AIMv2Model": aimv2.apple}
# Fields that are numbers of something, wherever they are.
_COUNTS = ("hidden_size", "intermediate_size", "num_attention_heads", "vocab_size")
# `model_type` -> class, for a config without `architectures`.
MODEL_TYPES = {
  "aimv2": "Aimv2Model",
  "aimv2_vision_model": "Aimv2VisionModel",
  "blip-2": "Blip2ForConditionalGeneration",
  "clip": "CLIPModel",
  "clip_vision_model": "CLIPVisionModel",
  "deepseek_vl": "DeepseekVLForConditionalGeneration",
  "deepseek_vl_hybrid": "DeepseekVLHybridForConditionalGeneration",
  "dinov2": "Dinov2Model",
  "fuyu": "FuyuForCausalLM",
  "gemma": "GemmaForCausalLM",
  "gemma2": "Gemma2ForCausalLM",
  "gemma3": "Gemma3ForConditionalGeneration",
  "gemma3_text": "Gemma3ForCausalLM",
  "idefics": "IdeficsForVisionText2Text",
  "idefics2": "Idefics2ForConditionalGeneration",
  "idefics3": "Idefics3ForConditionalGeneration",
  "instructblip": "InstructBlipForConditionalGeneration",
  "instructblipvideo": "InstructBlipVideoForConditionalGeneration",
  "internvl": "InternVLForConditionalGeneration",
  "llama": "LlamaForCausalLM",
  "llava": "LlavaForConditionalGeneration",
  "llava_next": "LlavaNextForConditionalGeneration",
  "llava_next_video": "LlavaNextVideoForConditionalGeneration",
  "llava_onevision": "LlavaOnevisionForConditionalGeneration",
  "metaclip_2": "MetaClip2Model",
  "metaclip_2_vision_model": "MetaClip2VisionModel",
  "mistral": "MistralForCausalLM",
  "mistral3": "Mistral3ForConditionalGeneration",
  "mllama": "MllamaForConditionalGeneration",
  "mllama_text_model": "MllamaForCausalLM",
  "mt5": "MT5ForConditionalGeneration",
  "opt": "OPTForCausalLM",
  "paligemma": "PaliGemmaForConditionalGeneration",
  "persimmon": "PersimmonForCausalLM",
  "phi": "PhiForCausalLM",
  "qwen2": "Qwen2ForCausalLM",
  "qwen2_5_vl": "Qwen2_5_VLForConditionalGeneration",
  "qwen2_vl": "Qwen2VLForConditionalGeneration",
  "siglip": "SiglipModel",
  "siglip2": "Siglip2Model",
  "siglip2_vision_model": "Siglip2VisionModel",
  "siglip_vision_model": "SiglipVisionModel",
  "smolvlm": "SmolVLMForConditionalGeneration",
  "t5": "T5ForConditionalGeneration",
  "umt5": "UMT5ForConditionalGeneration",
  "video_llama_3": "VideoLlama3ForConditionalGeneration",
  "video_llava": "VideoLlavaForConditionalGeneration",
  "vipllava": "VipLlavaForConditionalGeneration",
  "vit": "ViTModel",
}


def system(cfg: Mapping[str, Any], where: str) -> System:
  """The system that a `config.json` describes.

  Args:
    cfg: its content.
    where: its path, for messages.

  Raises:
    ValueError: an architecture that is not in the table; lists those that are. A number of
      something that is none.
  """
  _check_counts(cfg, where)
  found = list(cfg.get("architectures") or [])
  if not found and cfg.get("model_type") in MODEL_TYPES:
    found = [MODEL_TYPES[cfg["model_type"]]]
  if not found:
    raise ValueError(
      f"{where} names neither `architectures` nor a known `model_type` "
      f"({cfg.get('model_type')!r}); known: {', '.join(sorted(MODEL_TYPES))}"
    )
  readers = ARCHITECTURES | OTHERS
  if found[0] not in readers:
    unknown = names.unknown("architecture", found[0], readers)
    raise ValueError(f"{where}: {unknown}. To add one: docs/adding_a_system.md")
  return readers[found[0]](cfg)


def _check_counts(cfg: Mapping[str, Any], where: str) -> None:
  for key, value in cfg.items():
    if isinstance(value, Mapping):
      _check_counts(value, f"{where}: {key}")
    elif key in _COUNTS and value is not None and (type(value) is not int or value < 1):
      raise ValueError(f"{where}: {key} is {value!r}, not a positive whole number")
