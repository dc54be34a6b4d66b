"""Published encoders: what differs from the defaults in their `config.json`, and their sizes.

A size is that of the parameters; a mask token, which no forward pass reads, is not one.
"""

from typing import Any


def _tower(width: int, depth: int, heads: int, hidden: int, **more: Any) -> dict[str, Any]:
  return dict(
    hidden_size=width,
    num_hidden_layers=depth,
    num_attention_heads=heads,
    intermediate_size=hidden,
    **more,
  )


def _dual(architecture: str, vision: dict, text: dict, **more: Any) -> dict[str, Any]:
  return dict(architectures=[architecture], vision_config=vision, text_config=text, **more)


def _one(architecture: str, config: dict, **more: Any) -> dict[str, Any]:
  return dict(architectures=[architecture], **config, **more)


_L, _H = (1024, 24, 16, 4096), (1280, 32, 16, 5120)
_SO400M = (1152, 27, 16, 4304)
_GEMMA = dict(vocab_size=256_000)  # The vocabulary of SigLIP 2.
_CLIP_H = dict(
  vision=_tower(*_H, patch_size=14), text=_tower(1024, 24, 16, 4096), projection_dim=1024
)
_CLIP_L = dict(text=_tower(768, 12, 12, 3072), projection_dim=768)

# name -> (config.json, number of parameters)
SIZES: dict[str, tuple[dict[str, Any], int]] = {
  "google/vit-base-patch16-224": (
    _one("ViTForImageClassification", {}, num_labels=1000),
    86_567_656,
  ),
  "google/vit-large-patch16-224": (
    _one("ViTForImageClassification", _tower(*_L), num_labels=1000),
    304_326_632,
  ),
  "vit-huge-patch14-224": (
    _one("ViTForImageClassification", _tower(*_H), patch_size=14, num_labels=1000),
    632_045_800,
  ),
  "openai/clip-vit-base-patch32": (_dual("CLIPModel", {}, {}), 151_277_313),
  "openai/clip-vit-base-patch16": (_dual("CLIPModel", dict(patch_size=16), {}), 149_620_737),
  "openai/clip-vit-large-patch14": (
    _dual("CLIPModel", _tower(*_L, patch_size=14), **_CLIP_L),
    427_616_513,
  ),
  "openai/clip-vit-large-patch14-336": (
    _dual("CLIPModel", _tower(*_L, patch_size=14, image_size=336), **_CLIP_L),
    427_944_193,
  ),
  "laion/CLIP-ViT-H-14-laion2B-s32B-b79K": (_dual("CLIPModel", **_CLIP_H), 986_109_441),
  "laion/CLIP-ViT-bigG-14-laion2B-39B-b160k": (
    _dual(
      "CLIPModel",
      _tower(1664, 48, 16, 8192, patch_size=14),
      _tower(1280, 32, 20, 5120),
      projection_dim=1280,
    ),
    2_539_567_105,
  ),
  "facebook/metaclip-2-worldwide-huge-quickgelu": (
    _dual("MetaClip2Model", **_CLIP_H | dict(text=_CLIP_H["text"] | dict(vocab_size=901_629))),
    1_858_783_745,
  ),
  "google/siglip-base-patch16-224": (_dual("SiglipModel", {}, {}), 203_155_970),
  "google/siglip-base-patch16-256": (
    _dual("SiglipModel", dict(image_size=256), {}),
    203_202_050,
  ),
  "google/siglip-base-patch16-384": (
    _dual("SiglipModel", dict(image_size=384), {}),
    203_447_810,
  ),
  "google/siglip-base-patch16-512": (
    _dual("SiglipModel", dict(image_size=512), {}),
    203_791_874,
  ),
  "google/siglip-base-patch16-256-multilingual": (
    _dual("SiglipModel", dict(image_size=256), dict(vocab_size=250_000)),
    370_626_050,
  ),
  "google/siglip-large-patch16-256": (
    _dual("SiglipModel", _tower(*_L, image_size=256), _tower(*_L)),
    652_150_786,
  ),
  "google/siglip-large-patch16-384": (
    _dual("SiglipModel", _tower(*_L, image_size=384), _tower(*_L)),
    652_478_466,
  ),
  "google/siglip-so400m-patch14-224": (
    _dual(
      "SiglipModel",
      _tower(*_SO400M, patch_size=14),
      _tower(*_SO400M, max_position_embeddings=16),
    ),
    877_360_306,
  ),
  "google/siglip-so400m-patch14-384": (
    _dual("SiglipModel", _tower(*_SO400M, patch_size=14, image_size=384), _tower(*_SO400M)),
    877_960_498,
  ),
  "google/siglip2-base-patch16-224": (_dual("SiglipModel", {}, _GEMMA), 375_187_970),
  "google/siglip2-base-patch32-256": (
    _dual("SiglipModel", dict(image_size=256, patch_size=32), _GEMMA),
    376_856_066,
  ),
  "google/siglip2-large-patch16-256": (
    _dual("SiglipModel", _tower(*_L, image_size=256), _tower(*_L, **_GEMMA)),
    881_526_786,
  ),
  "google/siglip2-so400m-patch14-224": (
    _dual("SiglipModel", _tower(*_SO400M, patch_size=14), _tower(*_SO400M, **_GEMMA)),
    1_135_463_602,
  ),
  "google/siglip2-so400m-patch16-256": (
    _dual("SiglipModel", _tower(*_SO400M, image_size=256), _tower(*_SO400M, **_GEMMA)),
    1_135_670_962,
  ),
  "google/siglip2-giant-opt-patch16-256": (
    _dual(
      "SiglipModel",
      _tower(1536, 40, 16, 6144, image_size=256),
      _tower(*_SO400M, **_GEMMA, projection_size=1536),
    ),
    1_871_393_906,
  ),
  "google/siglip2-base-patch16-naflex": (_dual("Siglip2Model", {}, _GEMMA), 375_234_050),
  "google/siglip2-so400m-patch16-naflex": (
    _dual("Siglip2Model", _tower(*_SO400M), _tower(*_SO400M, **_GEMMA)),
    1_135_670_962,
  ),
  "apple/aimv2-large-patch14-224": (
    _one("Aimv2VisionModel", {}, use_head=False),
    309_197_824,
  ),
  "apple/aimv2-large-patch14-336": (
    _one("Aimv2VisionModel", {}, use_head=False, image_size=336),
    309_525_504,
  ),
  "apple/aimv2-large-patch14-448": (
    _one("Aimv2VisionModel", {}, use_head=False, image_size=448),
    309_984_256,
  ),
  "apple/aimv2-huge-patch14-224": (
    _one("Aimv2VisionModel", _tower(1536, 24, 12, 4096), use_head=False),
    680_851_968,
  ),
  "apple/aimv2-1B-patch14-224": (
    _one("Aimv2VisionModel", _tower(2048, 24, 16, 5632), use_head=False),
    1_234_958_336,
  ),
  "apple/aimv2-3B-patch14-224": (
    _one("Aimv2VisionModel", _tower(3072, 24, 24, 8192), use_head=False),
    2_720_658_432,
  ),
  "apple/aimv2-large-patch14-224-lit": (
    _dual("Aimv2Model", {}, {}),
    436_221_441,
  ),
  "facebook/dinov2-small": (
    _one("Dinov2Model", dict(hidden_size=384, num_attention_heads=6), image_size=518),
    22_056_576 - 384,
  ),
  "facebook/dinov2-base": (_one("Dinov2Model", {}, image_size=518), 86_580_480 - 768),
  "facebook/dinov2-large": (
    _one(
      "Dinov2Model",
      dict(hidden_size=1024, num_hidden_layers=24, num_attention_heads=16),
      image_size=518,
    ),
    304_368_640 - 1024,
  ),
  "facebook/dinov2-giant": (
    _one(
      "Dinov2Model",
      dict(hidden_size=1536, num_hidden_layers=40, num_attention_heads=24, use_swiglu_ffn=True),
      image_size=518,
    ),
    1_136_480_768 - 1536,
  ),
}
