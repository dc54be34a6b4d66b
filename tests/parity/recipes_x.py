"""Random models of the reference that see pictures by cross-attention: IDEFICS, Mllama."""

from typing import Any

import numpy as np

from tests.parity import common

_EOS = 9  # As many ids end a row, so that rows end at different steps.
_MLLAMA_NAMES = (
  (r"^model\.(?=(language_model|vision_model|multi_modal_projector)\.)", ""),
  (r"^lm_head\.", "language_model.lm_head."),
  (r"^language_model\.(?=(layers|embed_tokens|norm)\.)", "language_model.model."),
)


def _ends(rng: np.random.Generator, vocab: int) -> list[int]:
  return [2, *(int(i) for i in rng.choice(np.arange(3, vocab), _EOS - 1, replace=False))]


def _small(model: Any, seed: int) -> Any:
  """Every parameter random; small embeddings, so that the layers have a say in what comes next."""
  import torch

  model = common.randomise(model, seed)
  with torch.no_grad():
    model.get_input_embeddings().weight *= 0.3
  return model


def _rows(
  rng: np.random.Generator, image: int, vocab: int, pictures: list[list[int]], length: int, odd: int
) -> tuple[np.ndarray, np.ndarray]:
  """Ids and mask [B, T] of rows with `image` at the given places of their text, padded."""
  ids = rng.integers(3, vocab, (len(pictures), length))
  ids = np.where(ids == image, 3, ids)
  mask = np.ones_like(ids)
  for row, places in enumerate(pictures):
    body = length - 2 * row
    left = 0 if odd and row % 2 else length - body
    mask[row, :left], mask[row, left + body :] = 0, 0
    ids[row, [left + n for n in places]] = image
  return ids, mask


def _prompts(inputs: dict[str, np.ndarray], pad: int) -> dict[str, np.ndarray]:
  """The inputs padded on the left, and with all that follows from it."""
  shift = inputs["attention_mask"][:, ::-1].argmax(axis=1)
  turned = dict(inputs)
  for key in ("input_ids", "attention_mask", "image_attention_mask", "cross_attention_mask"):
    if key in inputs:
      rows = zip(inputs[key], shift, strict=True)
      turned[key] = np.stack([np.roll(x, n, axis=0) for x, n in rows])
  return turned


def _last_picture(ids: np.ndarray, image: int, end: int, count: int) -> np.ndarray:
  """IDEFICS' mask [B, T, count]: a token sees the last picture before it, none behind an end."""
  out = np.zeros((*ids.shape, count), np.int64)
  for row, tokens in enumerate(ids):
    seen, over = -1, False
    for at, token in enumerate(tokens):
      if token == image:
        seen, over = seen + 1, False
      if 0 <= seen < count and not over:
        out[row, at, seen] = 1
      over = over or token == end
  return out


def _idefics(seed: int, **more: Any) -> tuple[Any, Any, dict[str, np.ndarray]]:
  import transformers

  odd = seed % 2
  rng = np.random.default_rng(seed)
  vocab, extra, patch, side = 113 + 14 * odd, 3 - odd, 5 + odd, 4 - odd
  vision = dict(
    embed_dim=48,
    image_size=side * patch,
    patch_size=patch,
    intermediate_size=88,
    num_hidden_layers=2 + odd,
    num_attention_heads=4,
    hidden_act="quick_gelu" if odd else "gelu",
  )
  perceiver = dict(
    use_resampler=True,
    resampler_n_latents=5 + odd,
    resampler_depth=2 + odd,
    resampler_n_heads=3,
    resampler_head_dim=10 + 2 * odd,
    qk_layer_norms_perceiver=not odd,
  )
  config = transformers.IdeficsConfig(
    **dict(
      vocab_size=vocab,
      additional_vocab_size=extra,
      hidden_size=80 if odd else 72,
      intermediate_size=104 + 8 * odd,
      num_hidden_layers=4,
      num_attention_heads=4,
      rms_norm_eps=1e-5 if odd else 1e-6,
      cross_layer_interval=2,
      qk_layer_norms=not odd,
      alpha_type="vector" if odd else "float",
      use_resampler=True,
      freeze_text_layers=False,
      freeze_vision_layers=False,
      vision_config=vision,
      perceiver_config=perceiver,
      eos_token_id=_ends(rng, vocab),
      pad_token_id=0,
      bos_token_id=1,
    )
    | more
  )
  config._attn_implementation = "eager"
  model = _small(transformers.IdeficsForVisionText2Text(config), seed)
  image = vocab + extra - 1
  # Text before a picture, two pictures, two side by side; and a row without any.
  places = [[0, 6], [3], [], [2, 3]]
  ids, mask = _rows(rng, image, vocab + extra, places, 17 + odd, odd)
  ids[0, 4] = 2  # Behind this end nothing is seen until the next picture.
  inputs = dict(
    input_ids=np.where(mask > 0, ids, 0),
    attention_mask=mask,
    pixel_values=common.pixels(rng, 4, 2, 3, side * patch, side * patch),
  )
  seen = _last_picture(inputs["input_ids"], image, 2, 2)
  return model, config, inputs | dict(image_attention_mask=seen)


def _options(inputs: dict[str, np.ndarray], *outputs: str, **more: Any) -> dict[str, Any]:
  found = dict(
    outputs=("logits", *outputs),
    mask=inputs["attention_mask"] > 0,
    generate=8,
    prompts=_prompts(inputs, 0),
  )
  return found | more


def idefics(seed: int) -> tuple[Any, dict, dict]:
  """IDEFICS with its resampler; gates, norms of queries and keys and the rest by seed."""
  model, _, inputs = _idefics(seed)
  return model, inputs, _options(inputs, "image_hidden_states")


def idefics_plain(seed: int) -> tuple[Any, dict, dict]:
  """IDEFICS without a resampler, every layer behind a cross-attention, under masks of any kind;
  with an even seed, pictures of a size of their own."""
  more = dict(use_resampler=False, cross_layer_interval=1, num_hidden_layers=2)
  if seed % 2:
    more |= dict(additional_vocab_size=0, tie_word_embeddings=True)
  model, config, inputs = _idefics(seed, **more)
  rng = np.random.default_rng(seed + 1)
  last = config.vocab_size + config.additional_vocab_size - 1
  inputs["input_ids"] = np.minimum(inputs["input_ids"], last)
  height, width = inputs["pixel_values"].shape[3:]
  if seed % 2 == 0:  # Of another size than the position table is for.
    patch = config.vision_config.patch_size
    height, width = height + patch, width - patch
    inputs["interpolate_pos_encoding"] = np.array(True)
  inputs["pixel_values"] = common.pixels(rng, 4, 5, 3, height, width)
  shape = (*inputs["input_ids"].shape, 5)
  inputs["image_attention_mask"] = rng.integers(0, 2, shape) * (rng.random((*shape[:2], 1)) < 0.9)
  # The names of the model without a head, where none is in the file.
  old_names = ((r"^model\.", ""),) if seed % 2 else ()
  return model, inputs, _options(inputs, "image_hidden_states", old_names=old_names)


def _mllama_text(seed: int) -> dict[str, Any]:
  odd = seed % 2
  rng = np.random.default_rng(seed)
  vocab = 113 + 14 * odd
  scaled = dict(
    rope_type="llama3",
    rope_theta=10_000.0,
    factor=4.0,
    low_freq_factor=1.0,
    high_freq_factor=4.0,
    original_max_position_embeddings=16,
  )
  return dict(
    vocab_size=vocab,
    hidden_size=96 if odd else 72,
    intermediate_size=104 + 8 * odd,
    num_hidden_layers=4 + odd,
    num_attention_heads=6,
    num_key_value_heads=2 + odd,
    rms_norm_eps=1e-5 if odd else 1e-6,
    cross_attention_layers=[1, 4] if odd else [1, 3],
    rope_parameters=scaled if odd else dict(rope_type="default", rope_theta=20_000.0),
    bos_token_id=1,
    eos_token_id=_ends(rng, vocab),
    pad_token_id=0,
  )


def _mllama(seed: int) -> tuple[Any, dict[str, np.ndarray], list[list[int]]]:
  import transformers

  odd = seed % 2
  text = _mllama_text(seed)
  patch = 4 + odd
  side = 3 + odd
  ratios = [[1, 1], [1, 2], [2, 1]]
  keep = [2, 0] if odd else [0, 1]
  vision = dict(
    hidden_size=48,
    hidden_act="gelu",
    num_hidden_layers=3,
    num_global_layers=2 - odd,
    attention_heads=4,
    intermediate_size=72 + 8 * odd,
    vision_output_dim=48 * 3,
    image_size=side * patch,
    patch_size=patch,
    norm_eps=1e-4,
    max_num_tiles=2 + odd,
    intermediate_layers_indices=keep,
    supported_aspect_ratios=ratios + [[1, 3], [3, 1]] * odd,
  )
  config = transformers.MllamaConfig(
    vision_config=vision, text_config=text, image_token_index=text["vocab_size"]
  )
  config._attn_implementation = "eager"
  for part in (config.vision_config, config.text_config):
    part._attn_implementation = "eager"
  model = _small(transformers.MllamaForConditionalGeneration(config), seed)
  rng = np.random.default_rng(seed)
  tiles, places = vision["max_num_tiles"], [[1, 6], [3], [], [2, 3]]
  ids, mask = _rows(rng, text["vocab_size"], text["vocab_size"], places, 17 + odd, odd)
  ids = np.where(mask > 0, ids, 0)
  size = side * patch
  pixels = common.pixels(rng, len(places), 2, tiles, 3, size, size)
  ids_of, real = np.zeros((4, 2), np.int64), np.zeros((4, 2, tiles), np.int64)
  real[:, :, 0] = 1  # The processor says so of pictures that are not there, too.
  for row, found in enumerate(places):
    for n in range(len(found)):
      way = (row + n) % len(ratios)
      ids_of[row, n], real[row, n] = way + 1, np.arange(tiles) < np.prod(ratios[way])
  real_pixels = np.where((real * (ids_of > 0)[..., None])[..., None, None, None] > 0, pixels, 0)
  inputs = dict(
    input_ids=ids,
    attention_mask=mask,
    pixel_values=real_pixels,
    aspect_ratio_ids=ids_of,
    aspect_ratio_mask=real,
  )
  seen = _pictures_since(ids, text["vocab_size"], real)
  return model, inputs | dict(cross_attention_mask=seen), places


def _pictures_since(ids: np.ndarray, image: int, real: np.ndarray) -> np.ndarray:
  """Mllama's mask [B, T, I, tiles]: pictures are seen until the next one; those side by side,
  together."""
  out = np.zeros((*ids.shape, *real.shape[1:]), np.int64)
  for row, tokens in enumerate(ids):
    places = [*np.flatnonzero(tokens == image), len(tokens)]
    end = len(tokens)
    for n in range(len(places) - 2, -1, -1):
      end = end if places[n + 1] == places[n] + 1 else places[n + 1]
      out[row, places[n] : end, n] = real[row, n]
  return out


def mllama(seed: int) -> tuple[Any, dict, dict]:
  """Llama 3.2-Vision: pictures of several tile counts, rows with two and with none."""
  model, inputs, _ = _mllama(seed)
  return model, inputs, _options(inputs, "cross_attention_states", old_names=_MLLAMA_NAMES)


def mllama_any(seed: int) -> tuple[Any, dict, dict]:
  """The same under masks of any kind or, with an odd seed, none; absent tiles are seen then."""
  model, inputs, _ = _mllama(seed)
  rng = np.random.default_rng(seed)
  shape = inputs.pop("cross_attention_mask").shape
  if seed % 2 == 0:
    inputs["cross_attention_mask"] = rng.integers(0, 2, shape) * (rng.random(shape[:2]) < 0.9)[
      ..., None, None
    ].astype(np.int64)
  return model, inputs, _options(inputs, "cross_attention_states", old_names=_MLLAMA_NAMES)


def mllama_text_only(seed: int) -> tuple[Any, dict, dict]:
  """Llama 3.2-Vision without pictures skips the layers that would see them."""
  model, inputs, _ = _mllama(seed)
  inputs = {k: inputs[k] for k in ("input_ids", "attention_mask")}
  return model, inputs, _options(inputs, old_names=_MLLAMA_NAMES)


def mllama_text(seed: int) -> tuple[Any, dict, dict]:
  """`MllamaForCausalLM`."""
  import transformers

  config = transformers.models.mllama.MllamaTextConfig(**_mllama_text(seed))
  config._attn_implementation = "eager"
  model = _small(transformers.MllamaForCausalLM(config), seed)
  rng = np.random.default_rng(seed)
  ids, mask = _rows(rng, -1, config.vocab_size, [[], [], []], 15 + seed % 2, seed % 2)
  inputs = dict(input_ids=np.where(mask > 0, ids, 0), attention_mask=mask)
  return model, inputs, _options(inputs)


RECIPES = {
  "idefics": idefics,
  "idefics_plain": idefics_plain,
  "mllama": mllama,
  "mllama_any": mllama_any,
  "mllama_text": mllama_text,
  "mllama_text_only": mllama_text_only,
}
