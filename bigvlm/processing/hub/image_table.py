"""Which image processor a checkpoint's files describe."""

import pathlib
from collections.abc import Mapping
from typing import Any

from PIL import Image

from bigvlm.processing.hub import images, native, square, tiles
from bigvlm.processing.hub.images import ImageProcessor
from bigvlm.utils import jsons, names

CLIP = dict(mean=(0.48145466, 0.4578275, 0.40821073), std=(0.26862954, 0.26130258, 0.27577711))
HALF = dict(mean=images.HALF, std=images.HALF)
BILINEAR, LANCZOS = int(Image.Resampling.BILINEAR), int(Image.Resampling.LANCZOS)


def both(side: int) -> dict[str, int]:
  """A square size."""
  return {"height": side, "width": side}


_CROP = dict(
  size={"shortest_edge": 224}, crop=both(224), center_crop=True, square=False, **CLIP
)  # fmt: skip
_SPLIT = dict(
  size={"longest_edge": 4 * 364}, tile={"longest_edge": 364}, resample=LANCZOS, **HALF
)  # fmt: skip
_PIXELS = {"shortest_edge": 56 * 56, "longest_edge": 28 * 28 * 1280}
_CANVASES = [[384 * rows, 384 * columns] for rows in range(1, 7) for columns in range(1, 7)]
# Class of the reference -> kind, and what differs from its defaults. Old names: `_class`.
TABLE: dict[str, tuple[type[ImageProcessor], dict[str, Any]]] = {
  "BitImageProcessor": (images.Plain, _CROP),
  "BlipImageProcessor": (images.Plain, dict(size=both(384), **CLIP)),
  "CLIPImageProcessor": (images.Plain, _CROP),
  "ConvNextImageProcessor": (
    images.Percent, dict(size={"shortest_edge": 384}, square=False, **HALF)
  ),
  "DeepseekVLHybridImageProcessor": (
    square.TwoFrames,
    dict(size=both(384), high_mean=CLIP["mean"], high_std=CLIP["std"], **CLIP),
  ),
  "DeepseekVLImageProcessor": (square.Framed, dict(size=both(384), **CLIP)),
  "FuyuImageProcessor": (
    native.Strips, dict(size={"height": 1080, "width": 1920}, resample=BILINEAR, **HALF)
  ),
  "Gemma3ImageProcessor": (images.PanAndScan, dict(size=both(224), resample=BILINEAR, **HALF)),
  "GotOcr2ImageProcessor": (tiles.Dynamic, dict(size=both(384), **CLIP)),
  "Idefics2ImageProcessor": (
    native.Masked,
    dict(
      size={"shortest_edge": 378, "longest_edge": 980}, square=False, resample=BILINEAR, **HALF
    ),
  ),
  "Idefics3ImageProcessor": (tiles.Split, _SPLIT),
  "IdeficsImageProcessor": (images.Fixed, dict(size=both(224), **CLIP)),
  "LlavaImageProcessor": (square.Padded, _CROP),
  "LlavaNextImageProcessor": (
    tiles.AnyRes,
    dict(grids=[[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]], **_CROP),
  ),
  "LlavaOnevisionImageProcessor": (
    tiles.AnyRes, dict(size=both(384), square=False, grids=_CANVASES, alone=True, **CLIP)
  ),
  "MllamaImageProcessor": (tiles.Canvas, dict(size=both(224), resample=BILINEAR, **HALF)),
  "PixtralImageProcessor": (native.WholePatches, dict(size={"longest_edge": 1024}, **CLIP)),
  "Qwen2VLImageProcessor": (native.Packed, dict(size=_PIXELS, square=False, **CLIP)),
  "Siglip2ImageProcessor": (images.Patches, dict(resample=BILINEAR, **HALF)),
  "SiglipImageProcessor": (images.Plain, dict(size=both(224), square=False, **HALF)),
  "SmolVLMImageProcessor": (tiles.Split, _SPLIT),
  "ViTImageProcessor": (images.Plain, dict(size=both(224), resample=BILINEAR, **HALF)),
  "VideoLlama3ImageProcessor": (
    native.Packed, dict(size=_PIXELS, square=False, temporal=1, merge=1, merges=True, **HALF)
  ),
  "VideoLlavaImageProcessor": (ImageProcessor, dict(output="pixel_values_images", **_CROP)),
}  # fmt: skip
# `model_type` -> class, for files that do not name one.
MODEL_TYPES = {
  "aimv2": "CLIPImageProcessor",
  "aimv2_vision_model": "CLIPImageProcessor",
  "blip-2": "BlipImageProcessor",
  "clip": "CLIPImageProcessor",
  "clip_vision_model": "CLIPImageProcessor",
  "convnext": "ConvNextImageProcessor",
  "deepseek_vl": "DeepseekVLImageProcessor",
  "deepseek_vl_hybrid": "DeepseekVLHybridImageProcessor",
  "dinov2": "BitImageProcessor",
  "fuyu": "FuyuImageProcessor",
  "gemma3": "Gemma3ImageProcessor",
  "idefics": "IdeficsImageProcessor",
  "idefics2": "Idefics2ImageProcessor",
  "idefics3": "Idefics3ImageProcessor",
  "instructblip": "BlipImageProcessor",
  "internvl": "GotOcr2ImageProcessor",
  "llava": "LlavaImageProcessor",
  "llava_next": "LlavaNextImageProcessor",
  "llava_next_video": "LlavaNextImageProcessor",
  "llava_onevision": "LlavaOnevisionImageProcessor",
  "metaclip_2": "CLIPImageProcessor",
  "metaclip_2_vision_model": "CLIPImageProcessor",
  "mllama": "MllamaImageProcessor",
  "paligemma": "SiglipImageProcessor",
  "pixtral": "PixtralImageProcessor",
  "qwen2_5_vl": "Qwen2VLImageProcessor",
  "qwen2_vl": "Qwen2VLImageProcessor",
  "siglip": "SiglipImageProcessor",
  "siglip2": "Siglip2ImageProcessor",
  "siglip2_vision_model": "Siglip2ImageProcessor",
  "siglip_vision_model": "SiglipImageProcessor",
  "smolvlm": "SmolVLMImageProcessor",
  "video_llama_3": "VideoLlama3ImageProcessor",
  "video_llava": "VideoLlavaImageProcessor",
  "vipllava": "CLIPImageProcessor",
  "vit": "ViTImageProcessor",
}


def _class(name: str) -> str:
  """The name in `TABLE` of a class, also of an old or a fast one."""
  for ending in ("Fast", "Pil"):
    name = name.removesuffix(ending)
  return name.replace("FeatureExtractor", "ImageProcessor")


def config(directory: pathlib.Path) -> dict[str, Any] | None:
  """The image part of `processor_config.json`, else `preprocessor_config.json`, or None."""
  for file in ("processor_config.json", "preprocessor_config.json"):
    if (directory / file).is_file():
      found = jsons.read(directory / file)
      found = found.get("image_processor") if file == "processor_config.json" else found
      if isinstance(found, dict):
        return found
  return None


def make(cfg: Mapping[str, Any], model_type: str = "", where: str = "") -> ImageProcessor:
  """The processor that a configuration describes.

  Args:
    cfg: content of `preprocessor_config.json`.
    model_type: decides the class where `cfg` does not name it.
    where: the file, for messages.

  Raises:
    ValueError: a class that is not in `TABLE`.
  """
  name = cfg.get("image_processor_type") or cfg.get("feature_extractor_type")
  name = _class(name or MODEL_TYPES.get(model_type, ""))
  if name not in TABLE:
    what = names.unknown("image processor", name, TABLE)
    raise ValueError(f"{where}: {what}")
  kind, settings = TABLE[name]
  made = kind(name=name, **settings)
  return made.replace({k: v for k, v in cfg.items() if k in made.KEYS}).settled()
