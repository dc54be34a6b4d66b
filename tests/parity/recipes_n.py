"""Random models of the reference that read pictures at their own size, as packed patches."""

from typing import Any

import numpy as np

from tests.parity import common

_IMAGE, _VIDEO, _START = 3, 4, 5  # Placeholders, and what is put in front of them.
_FIRST = 6  # Of the ids that are words.
# From what save_pretrained writes, the hub's names, to those of the modules.
_QWEN_NAMES = ((r"^model\.", "model.language_model."), (r"^visual\.", "model.visual."))
_LLAVA_NAMES = (
  (r"^language_model\.lm_head\.", "lm_head."),
  (r"^language_model\.model\.", "model.language_model."),
  (r"^(vision_tower|multi_modal_projector)\.", r"model.\1."),
)


def _text(seed: int, **more: Any) -> dict[str, Any]:
  """Sizes of a text model with fewer key heads than heads."""
  odd = seed % 2
  vocab = 113 + 14 * odd
  rng = np.random.default_rng(seed)
  ends = [1, *(int(i) for i in rng.choice(np.arange(_FIRST, vocab), 8, replace=False))]
  return (
    dict(
      vocab_size=vocab,
      hidden_size=40 if odd else 48,
      intermediate_size=56 + 8 * odd,
      num_hidden_layers=2,
      num_attention_heads=2 if odd else 4,
      num_key_value_heads=2 - odd,
      rms_norm_eps=1e-5 if odd else 1e-6,
      max_position_embeddings=512,
      eos_token_id=ends,
      pad_token_id=0,
      bos_token_id=2,
    )
    | more
  )


def _mrope(seed: int) -> dict[str, Any]:
  """Sections that are the pairs of the heads of `_text`: of 20 features, or of 12."""
  sections = [2, 5, 3] if seed % 2 else [2, 1, 3]
  return dict(rope_type="default", rope_theta=5_000.0 + seed % 7, mrope_section=sections)


def _prompts(
  rows: list[list[tuple[int, int]]], seed: int, vocab: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Ids, mask and kinds (0 text, 1 picture, 2 video) [B, T], padded on the left.

  Args:
    rows: for every row the (placeholder, number of tokens) of its media, in reading order.
    seed, vocab: of the words in between.
  """
  rng = np.random.default_rng(seed)
  texts = []
  for media in rows:
    ids = list(rng.integers(_FIRST, vocab, 2 + int(rng.integers(3))))
    for token, count in media:
      ids += [_START, *[token] * count, *rng.integers(_FIRST, vocab, 1 + int(rng.integers(3)))]
    texts.append(ids + list(rng.integers(_FIRST, vocab, 2)))
  length = max(map(len, texts)) + seed % 2
  ids, mask = (np.zeros((len(rows), length), np.int64) for _ in range(2))
  for row, text in enumerate(texts):
    ids[row, length - len(text) :], mask[row, length - len(text) :] = text, 1
  kinds = (ids == _IMAGE) + 2 * (ids == _VIDEO)
  return ids, mask, kinds.astype(np.int64)


def _options(inputs: dict[str, np.ndarray], video: bool = True, **more: Any) -> dict[str, Any]:
  outputs = ("logits", "image_features", *(("video_features",) if video else ()))
  return dict(outputs=outputs, mask=inputs["attention_mask"] > 0, generate=7) | more


def _random(seed: int, model: Any) -> Any:
  """Every parameter random; small embeddings, so that the layers have a say in what comes next."""
  import torch

  model = common.randomise(model, seed)
  with torch.no_grad():
    model.get_input_embeddings().weight *= 0.1
  return model


def _patches(rng: np.random.Generator, grids: list[tuple[int, int, int]], size: int) -> np.ndarray:
  return common.pixels(rng, sum(t * h * w for t, h, w in grids), size)


def _grids(seed: int) -> tuple[list, list, list]:
  """Grids of pictures and of videos, and which a row has: ("i" or "v", number)."""
  images = [(1, 4, 6), (1, 6, 2), (1, 2, 4)] if seed % 2 else [(1, 6, 4), (1, 2, 8), (1, 10, 6)]
  videos = [(3, 2, 4), (2, 6, 4)] if seed % 2 else [(2, 4, 4), (4, 2, 4)]
  rows = (
    [["i0", "v0"], [], ["v1", "i1", "i2"]] if seed % 2 else [["i0", "i1"], ["v0"], ["i2", "v1"]]
  )
  return images, videos, rows


def _qwen(seed: int, config: Any, cls: Any, patch: int, frames: int) -> tuple[dict, Any]:
  config._attn_implementation = "eager"
  model, rng = _random(seed, cls(config)), np.random.default_rng(seed)
  images, videos, rows = _grids(seed)

  def media(name: str) -> tuple[int, int]:
    grid = (images if name[0] == "i" else videos)[int(name[1])]
    return (_IMAGE if name[0] == "i" else _VIDEO), int(np.prod(grid)) // 4

  found = [[media(name) for name in row] for row in rows]
  ids, mask, kinds = _prompts(found, seed, config.text_config.vocab_size)
  inputs = dict(
    input_ids=ids,
    attention_mask=mask,
    mm_token_type_ids=kinds,
    pixel_values=_patches(rng, images, 3 * frames * patch**2),
    image_grid_thw=np.array(images),
    pixel_values_videos=_patches(rng, videos, 3 * frames * patch**2),
    video_grid_thw=np.array(videos),
  )
  return inputs, model


def qwen2_vl(seed: int) -> tuple[Any, dict, dict]:
  """Qwen2-VL: pictures and videos in a prompt; with an odd seed one of the prompts has none."""
  import transformers

  # The last layer of an odd seed sees few tokens back, fewer than a picture takes.
  back = dict(use_sliding_window=True, sliding_window=5, max_window_layers=1) if seed % 2 else {}
  text = _text(seed, rope_parameters=_mrope(seed), **back)
  patch, frames = 4 + seed % 2, 2
  config = transformers.Qwen2VLConfig(
    vision_config=dict(
      depth=2 + seed % 2,
      embed_dim=24,
      hidden_size=text["hidden_size"],
      mlp_ratio=2,
      num_heads=2,
      patch_size=patch,
      temporal_patch_size=frames,
      hidden_act="gelu" if seed % 2 else "quick_gelu",
    ),
    text_config=text,
    image_token_id=_IMAGE,
    video_token_id=_VIDEO,
    vision_start_token_id=_START,
    tie_word_embeddings=bool(seed % 2),
  )
  inputs, model = _qwen(seed, config, transformers.Qwen2VLForConditionalGeneration, patch, frames)
  return model, inputs, _options(inputs, old_names=_QWEN_NAMES)


def qwen2_5_vl(seed: int) -> tuple[Any, dict, dict]:
  """Qwen2.5-VL: windows that do not divide the pictures, and videos with seconds between frames."""
  import transformers

  text, patch, frames = _text(seed, rope_parameters=_mrope(seed)), 4, 2 - seed % 2
  config = transformers.Qwen2_5_VLConfig(
    vision_config=dict(
      depth=4,
      hidden_size=24,
      intermediate_size=36,
      out_hidden_size=text["hidden_size"],
      num_heads=2,
      patch_size=patch,
      temporal_patch_size=frames,
      window_size=2 * patch * (1 + seed % 2) + 2,
      fullatt_block_indexes=[2] if seed % 2 else [1, 3],
      tokens_per_second=2 + seed % 2,
    ),
    text_config=text,
    image_token_id=_IMAGE,
    video_token_id=_VIDEO,
    vision_start_token_id=_START,
    tie_word_embeddings=not seed % 2,
  )
  inputs, model = _qwen(
    seed, config, transformers.Qwen2_5_VLForConditionalGeneration, patch, frames
  )
  inputs["second_per_grid_ts"] = np.array([1.25, 0.5], np.float32)
  return model, inputs, _options(inputs, old_names=_QWEN_NAMES)


def _sizes(seed: int, patch: int, block: int) -> tuple[np.ndarray, np.ndarray, list]:
  """Pictures of several sizes, padded to one: `pixel_values`, `image_sizes`, and their tokens."""
  rng, side = np.random.default_rng(seed), patch * block
  grids = [(2, 3), (1, 4), (3, 2)] if seed % 2 else [(3, 1), (2, 2), (1, 3), (2, 3)]
  sizes = np.array(grids) * side
  pixels = np.zeros((len(grids), 3, *sizes.max(axis=0)), np.float32)
  for n, (height, width) in enumerate(sizes):
    pixels[n, :, :height, :width] = common.pixels(rng, 3, height, width)
  return pixels, sizes, grids


def _broken(grid: tuple[int, int]) -> list[tuple[int, int]]:
  """Placeholders of a picture: a row break, here a word, stands behind every row."""
  return [(_IMAGE, grid[1])] * grid[0]


def _pixtral(seed: int, config: Any, cls: Any, patch: int, block: int) -> tuple[Any, dict, dict]:
  config._attn_implementation = "eager"
  model = _random(seed, cls(config))
  pixels, sizes, grids = _sizes(seed, patch, block)
  split = [grids[:1], grids[1:3], grids[3:]] if len(grids) > 3 else [grids[:2], grids[2:], []]
  found = [[part for grid in row for part in _broken(grid)] for row in split]
  ids, mask, _ = _prompts(found, seed, config.text_config.vocab_size)
  inputs = dict(input_ids=ids, attention_mask=mask, pixel_values=pixels, image_sizes=sizes)
  return model, inputs, _options(inputs, video=False, old_names=_LLAVA_NAMES)


def _pixtral_vision(seed: int) -> dict[str, Any]:
  return dict(
    model_type="pixtral",
    hidden_size=40,
    intermediate_size=56,
    num_hidden_layers=2 + seed % 2,
    num_attention_heads=2,
    patch_size=4 + seed % 2,
    image_size=64,
    hidden_act="silu" if seed % 2 else "gelu",
  )


def _mistral(seed: int) -> dict[str, Any]:
  rope = dict(rope_type="default", rope_theta=1_000_000.0 + seed % 9)
  window = 6 if seed % 2 else None
  return _text(seed, model_type="mistral", head_dim=14, sliding_window=window, rope_parameters=rope)


def pixtral(seed: int) -> tuple[Any, dict, dict]:
  """Pixtral; with an odd seed the layer before the last, and text that sees few tokens back."""
  import transformers

  vision = _pixtral_vision(seed)
  config = transformers.LlavaConfig(
    vision_config=vision,
    text_config=_mistral(seed),
    image_token_index=_IMAGE,
    vision_feature_layer=-1 - seed % 2,
    vision_feature_select_strategy="full",
    multimodal_projector_bias=not seed % 2,
  )
  cls = transformers.LlavaForConditionalGeneration
  return _pixtral(seed, config, cls, vision["patch_size"], 1)


def mistral3(seed: int) -> tuple[Any, dict, dict]:
  """Mistral 3: Pixtral with squares of patches merged."""
  import transformers

  vision, merge = _pixtral_vision(seed), 2 + seed % 2
  config = transformers.Mistral3Config(
    vision_config=vision,
    text_config=_mistral(seed),
    image_token_index=_IMAGE,
    spatial_merge_size=merge,
    multimodal_projector_bias=bool(seed % 2),
    tie_word_embeddings=bool(seed % 2),
  )
  cls = transformers.Mistral3ForConditionalGeneration
  return _pixtral(seed, config, cls, vision["patch_size"], merge)


def video_llama_3(seed: int) -> tuple[Any, dict, dict]:
  """VideoLLaMA 3: pictures as they are, videos with squares of patches made one.

  With an odd seed there are words between the frames of videos, some of whose tokens are left out.
  """
  import transformers

  patch, rng = 4 + seed % 2, np.random.default_rng(seed)
  config = transformers.VideoLlama3Config(
    vision_config=dict(
      hidden_size=40,
      intermediate_size=56,
      num_hidden_layers=2 + seed % 2,
      num_attention_heads=2,
      patch_size=patch,
      layer_norm_eps=1e-5,
    ),
    text_config=_text(seed, model_type="qwen2", tie_word_embeddings=bool(seed % 2)),
    image_token_id=_IMAGE,
    video_token_id=_VIDEO,
  )
  config._attn_implementation = "eager"
  model = _random(seed, transformers.VideoLlama3ForConditionalGeneration(config))
  images, videos = [(1, 3, 5), (1, 2, 2), (1, 4, 3)], [(3, 4, 6), (2, 12, 6)]
  sides = [2, 3] if seed % 2 else [2, 2]
  frames = [[h * w // side**2] * t for (t, h, w), side in zip(videos, sides, strict=True)]
  keep = rng.random(sum(map(sum, frames))) < 0.7
  if seed % 2:
    at = 0
    for counts in frames:
      for n, count in enumerate(counts):
        counts[n], at = int(keep[at : at + count].sum()), at + count
    parts = [[(_VIDEO, n) for n in counts if n] for counts in frames]
  else:
    parts = [[(_VIDEO, sum(counts))] for counts in frames]
  shown = [[(_IMAGE, h * w)] for _, h, w in images]
  rows = [[*shown[0], *parts[0]], [*shown[1], *shown[2]], parts[1]]
  ids, mask, _ = _prompts(rows, seed, config.text_config.vocab_size)
  inputs = dict(
    input_ids=ids,
    attention_mask=mask,
    pixel_values=_patches(rng, images, 3 * patch**2),
    image_grid_thw=np.array(images),
    image_merge_sizes=np.ones(len(images), np.int64),
    pixel_values_videos=_patches(rng, videos, 3 * patch**2),
    video_grid_thw=np.array(videos),
    video_merge_sizes=np.array(sides),
  )
  if seed % 2:
    inputs["video_compression_mask"] = keep
  return model, inputs, _options(inputs)


RECIPES = {
  "qwen2_vl": qwen2_vl,
  "qwen2_5_vl": qwen2_5_vl,
  "pixtral": pixtral,
  "mistral3": mistral3,
  "video_llama_3": video_llama_3,
}
