"""A checkpoint's processor: images and strings to the arrays that its model takes.

`make` reads one from the files beside the weights. Outputs are those of transformers' processor
of the same name with `return_tensors="np"`, under its names.
"""

import pathlib

from bigvlm.processing.hub import (
  base,
  blip,
  build,
  fuyu,
  gemma,
  idefics,
  image_table,
  internvl,
  llava,
  mllama,
  pixtral,
  qwen,
  videos,
)
from bigvlm.processing.hub.base import Parts, Processor
from bigvlm.utils import jsons

# `processor_class`, or the `model_type` where the files do not name one.
CLASSES: dict[str, type[Processor]] = {
  "Blip2Processor": blip.Blip2,
  "DeepseekVLHybridProcessor": pixtral.DeepseekVL,
  "DeepseekVLProcessor": pixtral.DeepseekVL,
  "FuyuProcessor": fuyu.Fuyu,
  "Gemma3Processor": gemma.Gemma3,
  "Idefics2Processor": idefics.Idefics2,
  "Idefics3Processor": idefics.Idefics3,
  "IdeficsProcessor": idefics.Idefics,
  "InstructBlipProcessor": blip.InstructBlip,
  "InstructBlipVideoProcessor": blip.InstructBlipVideo,
  "InternVLProcessor": internvl.InternVL,
  "LlavaNextProcessor": llava.LlavaNext,
  "LlavaNextVideoProcessor": llava.LlavaNextVideo,
  "LlavaOnevisionProcessor": llava.LlavaOnevision,
  "LlavaProcessor": llava.Llava,
  "MllamaProcessor": mllama.Mllama,
  "PaliGemmaProcessor": gemma.PaliGemma,
  "PixtralProcessor": pixtral.Pixtral,
  "Qwen2VLProcessor": qwen.Qwen2VL,
  "Qwen2_5_VLProcessor": qwen.Qwen25VL,
  "Siglip2Processor": base.Siglip2,
  "SiglipProcessor": base.Siglip,
  "SmolVLMProcessor": idefics.SmolVLM,
  "VideoLlama3Processor": qwen.VideoLlama3,
  "VideoLlavaProcessor": llava.VideoLlava,
  "blip-2": blip.Blip2,
  "deepseek_vl": pixtral.DeepseekVL,
  "deepseek_vl_hybrid": pixtral.DeepseekVL,
  "fuyu": fuyu.Fuyu,
  "gemma3": gemma.Gemma3,
  "idefics": idefics.Idefics,
  "idefics2": idefics.Idefics2,
  "idefics3": idefics.Idefics3,
  "instructblip": blip.InstructBlip,
  "instructblipvideo": blip.InstructBlipVideo,
  "internvl": internvl.InternVL,
  "llava": llava.Llava,
  "llava_next": llava.LlavaNext,
  "llava_next_video": llava.LlavaNextVideo,
  "llava_onevision": llava.LlavaOnevision,
  "mllama": mllama.Mllama,
  "paligemma": gemma.PaliGemma,
  "pixtral": pixtral.Pixtral,
  "qwen2_5_vl": qwen.Qwen25VL,
  "qwen2_vl": qwen.Qwen2VL,
  "siglip": base.Siglip,
  "siglip2": base.Siglip2,
  "smolvlm": idefics.SmolVLM,
  "video_llama_3": qwen.VideoLlama3,
  "video_llava": llava.VideoLlava,
  "vipllava": llava.Llava,
}
_ENCODER_DECODERS = ("t5", "mt5", "umt5")


def make(directory: str | pathlib.Path) -> Processor | None:
  """The processor of a checkpoint directory; None without tokenizer and preprocessor files.

  Raises:
    ValueError: files that are damaged, that name an unknown image processor, or that lack what
      this system needs.
  """
  directory = pathlib.Path(directory)
  files = {
    file: jsons.read(directory / file)
    for file in ("config.json", "processor_config.json", "preprocessor_config.json")
    if (directory / file).is_file()
  }
  config = files.get("config.json", {})
  kind = config.get("model_type", "")
  named = (s.get("processor_class") for s in reversed(files.values()))
  made = CLASSES.get(next((n for n in named if n in CLASSES), kind), Processor)
  where = str(directory)
  pixels, frames = image_table.config(directory), videos.config(directory)
  if "videos" in made.NEEDS:
    pixels = None  # Its files have settings of frames alone.
  second = directory / "qformer_tokenizer"
  parts = Parts(
    None if pixels is None else image_table.make(pixels, kind, where),
    build.make(directory),
    None if frames is None else videos.make(frames, kind, where),
    build.make(second) if second.is_dir() else None,
    files.get("processor_config.json", {}),
    config,
  )
  if parts.images is None and parts.tokenizer is None and parts.videos is None:
    return None
  if any(getattr(parts, name) is None for name in made.NEEDS):
    made = Processor
  text = config.get("text_config") or config
  return made(parts, targets=True) if _targets(made, text) else made(parts)


def _targets(made: type[Processor], text: dict) -> bool:
  """Whether an encoder-decoder reads the text."""
  return made in _ANSWERING and text.get("model_type") in _ENCODER_DECODERS


_ANSWERING = (Processor, blip.Blip2, blip.InstructBlip, blip.InstructBlipVideo)
