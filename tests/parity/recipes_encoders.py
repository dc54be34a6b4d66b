"""Tiny random encoders and dual encoders of transformers, with inputs for them.

A recipe gives (model, inputs, options) of a seed; odd and even seeds have other sizes.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from tests.parity import common

Recipe = tuple[Any, dict[str, np.ndarray], dict[str, Any]]
_DUAL = ["image_embeds", "text_embeds", "logits_per_image", "logits_per_text"]
_POOLED = ["last_hidden_state", "pooler_output"]


# Files on the hub have the names of the whole dual encoder.
_PREFIXED = ((r"^", "vision_model."),)


def _options(outputs: list[str], old_names: tuple = ()) -> dict[str, Any]:
  return dict(mask=None, generate=0, outputs=outputs, old_names=old_names)


def _model(name: str, config: Any, seed: int) -> Any:
  import transformers

  config._attn_implementation = "eager"
  return common.randomise(getattr(transformers, name)(config), seed)


def _sizes(seed: int) -> dict[str, int]:
  """Sizes of a tower; no two of them alike."""
  odd = dict(hidden_size=48, intermediate_size=80, num_hidden_layers=2, num_attention_heads=4)
  even = dict(hidden_size=40, intermediate_size=56, num_hidden_layers=3, num_attention_heads=5)
  return odd if seed % 2 else even


def _text_sizes(seed: int) -> dict[str, int]:
  odd = dict(hidden_size=80, intermediate_size=72, num_hidden_layers=3, num_attention_heads=5)
  even = dict(hidden_size=24, intermediate_size=88, num_hidden_layers=2, num_attention_heads=3)
  return odd if seed % 2 else even


def _images(seed: int) -> dict[str, int]:
  """Image size, not always a multiple of the patch, and patch size."""
  return dict(image_size=30, patch_size=6) if seed % 2 else dict(image_size=34, patch_size=8)


def _pixels(seed: int, height: int = 0, width: int = 0) -> dict[str, np.ndarray]:
  side = _images(seed)["image_size"]
  rng = np.random.default_rng(seed)
  return dict(pixel_values=common.pixels(rng, 2, 3, height or side, width or side))


def _resized(seed: int, flag: bool = True) -> dict[str, np.ndarray]:
  """Images that are neither square nor of the config's size."""
  inputs = _pixels(seed, 44, 25) if seed % 2 else _pixels(seed, 26, 57)
  return inputs | (dict(interpolate_pos_encoding=np.array(True)) if flag else {})


def _tokens(seed: int, eos: int, vocab: int = 99, length: int = 13) -> dict[str, np.ndarray]:
  """Three texts of different lengths, padded on the right after their end token."""
  rng = np.random.default_rng(seed)
  ids = rng.integers(3, vocab - 1, (3, length))
  ids[ids == eos] = 3
  mask = common.padding(rng, 3, length, "right")
  last = mask.sum(axis=1) - 1
  ids[np.arange(3), last] = eos
  return dict(input_ids=np.where(mask > 0, ids, 1), attention_mask=mask)


def _clip_like(name: str, eos: int) -> Callable[[int], Recipe]:
  def make(seed: int) -> Recipe:
    import transformers

    vocab = 99
    text = dict(_text_sizes(seed), vocab_size=vocab, max_position_embeddings=16, eos_token_id=eos)
    vision = dict(_sizes(seed), **_images(seed))
    act = {} if seed % 2 else dict(hidden_act="gelu")
    config = getattr(transformers, f"{name}Config")(
      text_config=text | act, vision_config=vision | act, projection_dim=20 + seed % 2
    )
    inputs = _pixels(seed) | _tokens(seed, vocab - 1 if name == "CLIP" and eos == 2 else eos)
    return _model(f"{name}Model", config, seed), inputs, _options(_DUAL)

  return make


def _clip_vision(name: str, resized: bool) -> Callable[[int], Recipe]:
  def make(seed: int) -> Recipe:
    import transformers

    config = getattr(transformers, f"{name}VisionConfig")(**_sizes(seed), **_images(seed))
    inputs = _resized(seed) if resized else _pixels(seed)
    return _model(f"{name}VisionModel", config, seed), inputs, _options(_POOLED, _PREFIXED)

  return make


def _siglip_config(seed: int, vocab: int) -> Any:
  import transformers

  vision = _sizes(seed)
  text = dict(_text_sizes(seed), vocab_size=vocab, max_position_embeddings=13)
  text |= dict(projection_size=vision["hidden_size"])
  return transformers.SiglipConfig(text_config=text, vision_config=vision | _images(seed))


def _siglip(masked: bool, vocab: int = 99) -> Callable[[int], Recipe]:
  def make(seed: int) -> Recipe:
    inputs = _pixels(seed) | _tokens(seed, 1, vocab)
    if not masked:
      del inputs["attention_mask"]
    model = _model("SiglipModel", _siglip_config(seed, vocab), seed)
    return model, inputs, _options(_DUAL)

  return make


def _siglip_vision(seed: int) -> Recipe:
  import transformers

  config = transformers.SiglipVisionConfig(**_sizes(seed), **_images(seed))
  return _model("SiglipVisionModel", config, seed), _resized(seed), _options(_POOLED, _PREFIXED)


def _patches(seed: int) -> dict[str, np.ndarray]:
  """Pictures of three shapes, larger and smaller than the position table, padded to 24 patches."""
  rng = np.random.default_rng(seed)
  patch = _images(seed)["patch_size"]
  shapes = np.array([[4, 6], [2, 3], [7, 2]] if seed % 2 else [[3, 8], [2, 11], [5, 4]])
  mask = (np.arange(24) < shapes.prod(axis=1)[:, None]).astype(np.int64)
  pixels = common.pixels(rng, 3, 24, patch * patch * 3) * mask[:, :, None].astype(np.float32)
  return dict(pixel_values=pixels, pixel_attention_mask=mask, spatial_shapes=shapes)


def _naflex_config(seed: int) -> dict[str, int]:
  return dict(_sizes(seed), patch_size=_images(seed)["patch_size"], num_patches=25 - seed % 2 * 9)


def _siglip2(seed: int) -> Recipe:
  import transformers

  vision = _naflex_config(seed)
  text = dict(_text_sizes(seed), vocab_size=99, max_position_embeddings=13)
  text |= dict(projection_size=vision["hidden_size"])
  config = transformers.Siglip2Config(text_config=text, vision_config=vision)
  inputs = _patches(seed) | _tokens(seed, 1)
  return _model("Siglip2Model", config, seed), inputs, _options(_DUAL)


def _siglip2_vision(seed: int) -> Recipe:
  import transformers

  config = transformers.Siglip2VisionConfig(**_naflex_config(seed))
  return _model("Siglip2VisionModel", config, seed), _patches(seed), _options(_POOLED, _PREFIXED)


def _vit(classes: int, resized: bool = False) -> Callable[[int], Recipe]:
  def make(seed: int) -> Recipe:
    import transformers

    config = transformers.ViTConfig(**_sizes(seed), **_images(seed), qkv_bias=bool(seed % 2))
    if not seed % 2 and not resized:
      config.image_size = [26, 41]
    if seed % 4 > 1 and resized:
      # 4 x 9 positions, which the reference takes for 6 x 6 where it resizes them.
      config.image_size = [4 * config.patch_size, 9 * config.patch_size]
    if classes:
      config.num_labels = classes + seed % 2
    elif not seed % 2:
      config.pooler_output_size = 36
    inputs = _resized(seed) if resized else _pixels(seed, *np.broadcast_to(config.image_size, 2))
    name, outputs = ("ViTForImageClassification", ["logits"]) if classes else ("ViTModel", _POOLED)
    return _model(name, config, seed), inputs, _options(outputs)

  return make


def _dinov2(
  classes: int = 0, swiglu: bool = False, resized: bool = True
) -> Callable[[int], Recipe]:
  def make(seed: int) -> Recipe:
    import transformers

    sizes = _sizes(seed)
    del sizes["intermediate_size"]
    config = transformers.Dinov2Config(
      **sizes,
      **_images(seed),
      mlp_ratio=3 + seed % 2,
      qkv_bias=bool(seed % 2),
      use_swiglu_ffn=swiglu,
    )
    if classes:
      config.num_labels = classes + seed % 2
    if resized and seed % 2:
      # 4 x 9 positions, which the reference takes for 6 x 6.
      config.image_size = [4 * config.patch_size, 9 * config.patch_size]
    inputs = _resized(seed, flag=False) if resized else _pixels(seed)
    name, outputs = (
      ("Dinov2ForImageClassification", ["logits"]) if classes else ("Dinov2Model", _POOLED)
    )
    return _model(name, config, seed), inputs, _options(outputs)

  return make


def _aimv2_vision(native: bool, head: bool = True) -> Callable[[int], Recipe]:
  def make(seed: int) -> Recipe:
    import transformers

    config = transformers.Aimv2VisionConfig(
      **_sizes(seed),
      **_images(seed),
      is_native=native,
      use_head=head,
      qkv_bias=not seed % 2,
      mlp_bias=not seed % 2,
    )
    inputs = _resized(seed, flag=False) if native else _pixels(seed)
    outputs = _POOLED if head else _POOLED[:1]
    return _model("Aimv2VisionModel", config, seed), inputs, _options(outputs)

  return make


def _aimv2(masked: bool) -> Callable[[int], Recipe]:
  def make(seed: int) -> Recipe:
    import torch
    import transformers

    text = dict(_text_sizes(seed), vocab_size=99, max_position_embeddings=16, eos_token_id=97)
    vision = dict(_sizes(seed), **_images(seed), is_native=not seed % 2)
    config = transformers.Aimv2Config(
      text_config=text, vision_config=vision, projection_dim=20, max_logit_scale=50.0
    )
    model = _model("Aimv2Model", config, seed)
    with torch.no_grad():  # One within the bounds, one beyond.
      model.logit_scale.fill_(1.3 if seed % 2 else 6.0)
    inputs = _pixels(seed) | _tokens(seed, 97)
    if not masked:
      del inputs["attention_mask"]
    return model, inputs, _options(_DUAL)

  return make


RECIPES: dict[str, Callable[[int], Recipe]] = {
  "clip": _clip_like("CLIP", 97),
  "clip_legacy_eos": _clip_like("CLIP", 2),
  "clip_vision": _clip_vision("CLIP", resized=True),
  "metaclip_2": _clip_like("MetaClip2", 2),
  "metaclip_2_vision": _clip_vision("MetaClip2", resized=False),
  "siglip": _siglip(masked=False),
  "siglip_masked": _siglip(masked=True),
  "siglip_vision": _siglip_vision,
  "siglip2": _siglip2,
  "siglip2_fixed": _siglip(masked=False, vocab=131),
  "siglip2_vision": _siglip2_vision,
  "vit": _vit(0),
  "vit_resized": _vit(0, resized=True),
  "vit_classifier": _vit(5),
  "dinov2": _dinov2(resized=False),
  "dinov2_resized": _dinov2(),
  "dinov2_swiglu": _dinov2(swiglu=True),
  "dinov2_classifier": _dinov2(classes=5),
  "aimv2_vision": _aimv2_vision(native=False),
  "aimv2_native": _aimv2_vision(native=True),
  "aimv2_trunk": _aimv2_vision(native=False, head=False),
  "aimv2": _aimv2(masked=True),
  "aimv2_unmasked": _aimv2(masked=False),
}
