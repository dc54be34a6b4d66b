"""Random InternVL, Idefics 2 and 3 and SmolVLM of the reference."""

from typing import Any

import numpy as np

from tests.parity import common, recipes_n, recipes_p1, recipes_t
from tests.parity.recipes_decoders import _options
from tests.parity.recipes_t import _sizes

# From what save_pretrained writes to the names of the files on the hub.
_INTERNVL_NAMES = (
  (r"^model\.(?=(language_model|vision_tower|multi_modal_projector)\.)", ""),
  (r"^language_model\.(?!(model|lm_head)\.)", "language_model.model."),
  (r"^lm_head\.", "language_model.lm_head."),
)
_PICTURES = (1, 2, 0)  # Of every row.


def _prompts(seed: int, vocab: int, image: int, tokens: tuple[int, ...]) -> dict[str, np.ndarray]:
  """Ids and mask of rows with one picture, two, and none; `tokens` of each picture in turn.

  Padded on the left, with an odd seed on either side in turn.
  """
  rng = np.random.default_rng(seed)
  length = sum(tokens) + 9 + seed % 2
  ids = rng.integers(3, vocab, (len(_PICTURES), length))
  ids, mask = np.where(ids == image, 3, ids), np.ones((len(_PICTURES), length), np.int64)
  sizes = iter(tokens)
  for row, n in enumerate(_PICTURES):
    mine = [next(sizes) for _ in range(n)]
    body = sum(mine) + 7 - row
    left = 0 if seed % 2 and row % 2 == 0 else length - body
    mask[row, :left], mask[row, left + body :] = 0, 0
    start = left + 1
    for size in mine:  # Something between two pictures.
      ids[row, start : start + size] = image
      start += size + 2
  return dict(input_ids=np.where(mask > 0, ids, 0), attention_mask=mask)


def _made(
  seed: int,
  config: Any,
  cls: Any,
  tokens: tuple[int, ...],
  pictures: dict[str, np.ndarray],
  **more: Any,
) -> tuple[Any, dict, dict]:
  """A model with small embeddings, so that the layers have a say in what comes next."""
  import torch

  config._attn_implementation = "eager"
  model = common.randomise(cls(config), seed)
  with torch.no_grad():
    model.get_input_embeddings().weight *= 0.1
  text = config.text_config
  inputs = _prompts(seed, text.vocab_size, config.image_token_id, tokens) | pictures
  return model, inputs, _options(inputs, outputs=("logits", "image_features"), **more)


def _vision(seed: int, side: int, **more: Any) -> dict[str, Any]:
  """An encoder of `side` x `side` patches."""
  patch = 6 + seed % 2
  return (
    dict(
      hidden_size=48,
      intermediate_size=88,
      num_hidden_layers=2 + seed % 2,
      num_attention_heads=4,
      image_size=side * patch,
      patch_size=patch,
    )
    | more
  )


def _internvl(
  seed: int, vision: dict[str, Any], side: int, factor: int, **more: Any
) -> tuple[Any, dict, dict]:
  """Tiles of `side` x `side` patches; the second row has one picture of one, one of two tiles."""
  import transformers

  # Fields that are left out have the reference's own defaults.
  text = _sizes(seed, model_type="llama" if seed % 2 else "qwen2")
  config = transformers.InternVLConfig(
    vision_config=vision,
    text_config=text,
    image_token_id=text["vocab_size"] - 2,
    downsample_ratio=1 / factor,
    **more,
  )
  tokens = (side // factor) ** 2
  size = side * config.vision_config.patch_size[0]
  pixels = common.pixels(np.random.default_rng(seed), 4, 3, size, size)
  return _made(
    seed,
    config,
    transformers.InternVLForConditionalGeneration,
    (tokens, tokens, 2 * tokens),
    dict(pixel_values=pixels),
    old_names=_INTERNVL_NAMES,
  )


def internvl(seed: int) -> tuple[Any, dict, dict]:
  """InternVL with Qwen 2; with an odd seed InternViT-6B's norms, Llama, tied embeddings."""
  if seed % 2:
    more = dict(norm_type="rms_norm", use_qk_norm=True, layer_norm_eps=1e-4, use_mask_token=True)
  else:
    more = dict(attention_bias=True, layer_norm_eps=1e-5)
  return _internvl(seed, _vision(seed, 4, **more), 4, 2, tie_word_embeddings=bool(seed % 2))


def internvl_layers(seed: int) -> tuple[Any, dict, dict]:
  """No positions and a last norm; with an odd seed an earlier layer, and a table that is a square
  though the config's pictures are none."""
  more: dict[str, Any] = dict(use_mean_pooling=False, norm_type="rms_norm", attention_bias=True)
  if seed % 2:
    more["image_size"] = [14, 56]
    return _internvl(seed, _vision(seed, 4, **more), 4, 2, vision_feature_layer=-2)
  more["use_absolute_position_embeddings"] = False
  return _internvl(seed, _vision(seed, 4, **more), 4, 4, projector_hidden_act="silu")


def _padded(
  seed: int, height: int, width: int, sizes: tuple[tuple[int, int], ...], rows: int = 3
) -> dict[str, np.ndarray]:
  """Pixels [B, 2, 3, height, width] of pictures of the given sizes, and their mask."""
  rng = np.random.default_rng(seed)
  x = np.zeros((rows, 2, 3, height, width), np.float32)
  mask = np.zeros((rows, 2, height, width), np.int64)
  places = [(row, k) for row, n in enumerate(_PICTURES) for k in range(n)]
  for (row, k), (h, w) in zip(places, sizes, strict=True):
    x[row, k, :, :h, :w] = common.pixels(rng, 3, h, w)
    mask[row, k, :h, :w] = 1
  return dict(pixel_values=x, pixel_attention_mask=mask)


def idefics2(seed: int) -> tuple[Any, dict, dict]:
  """Idefics 2: pictures of three shapes, with patches that only part of a picture covers."""
  import torch
  import transformers

  vision = _vision(seed, 5 + seed % 2, num_hidden_layers=2)
  window = None if seed % 2 else 6
  text = _sizes(seed, model_type="mistral", sliding_window=window, num_hidden_layers=2)
  perceiver = dict(
    hidden_size=text["hidden_size"],
    hidden_act="gelu" if seed % 2 else "silu",
    rms_norm_eps=1e-4,
    resampler_n_latents=3 + seed % 2,
    resampler_depth=2,
    resampler_n_heads=4,
    resampler_head_dim=10,
    num_key_value_heads=2,
  )
  if seed % 2:  # Another width: the text's, and its epsilon, win.
    perceiver["hidden_size"] = 56
  config = transformers.Idefics2Config(
    vision_config=vision,
    text_config=text,
    perceiver_config=perceiver,
    image_token_id=text["vocab_size"] - 2,
  )
  p, latents = vision["patch_size"], perceiver["resampler_n_latents"]
  height, width = 4 * p + 3, 7 * p
  sizes = ((height, 5 * p), (2 * p + 2, width), (3 * p, 4 * p - 1))
  pictures = _padded(seed, height, width, sizes)
  cls = transformers.Idefics2ForConditionalGeneration
  model, inputs, options = _made(seed, config, cls, (latents,) * 3, pictures)
  with torch.no_grad():  # Attention that is less sharp: it makes rounding errors grow.
    for name, p in model.named_parameters():
      if name.endswith("q_proj.weight"):
        p *= 0.25
  return model, inputs, options


def _idefics3(seed: int, config: Any, cls: Any, side: int, factor: int) -> tuple[Any, dict, dict]:
  """Pictures in slots of `side` x `side` patches, two of the three smaller than that."""
  p = config.vision_config.patch_size
  full = side * p
  sizes = ((full, full), (full - 2, 3 * p - 1), (2 * p + 1, full))
  pictures = _padded(seed, full, full, sizes)
  return _made(seed, config, cls, ((side // factor) ** 2,) * 3, pictures)


def idefics3(seed: int) -> tuple[Any, dict, dict]:
  """Idefics 3: a table of more rows than the pictures have, pixel shuffle by 2 and by 3."""
  import transformers

  rope: dict[str, Any] = dict(rope_type="llama3", factor=8.0, low_freq_factor=1.0)
  rope |= dict(high_freq_factor=4.0, original_max_position_embeddings=16, rope_theta=500.0)
  text = _sizes(seed, model_type="llama", rope_parameters=rope, head_dim=14)
  factor, side = (3, 6) if seed % 2 else (2, 4)
  config = transformers.Idefics3Config(
    vision_config=_vision(seed, 7 - seed % 2),
    text_config=text,
    image_token_id=text["vocab_size"] - 2,
    scale_factor=factor,
    tie_word_embeddings=bool(seed % 2),
  )
  return _idefics3(seed, config, transformers.Idefics3ForConditionalGeneration, side, factor)


def smolvlm(seed: int) -> tuple[Any, dict, dict]:
  """SmolVLM: pixel shuffle by 4; with an odd seed the frames of a video, without a mask."""
  import transformers

  text = _sizes(
    seed, model_type="llama", rope_parameters=dict(rope_theta=273e3, rope_type="default")
  )
  config = transformers.SmolVLMConfig(
    vision_config=_vision(seed, 4),
    text_config=text,
    image_token_id=text["vocab_size"] - 2,
    scale_factor=4 - seed % 2 * 2,
  )
  cls = transformers.SmolVLMForConditionalGeneration
  model, inputs, options = _idefics3(seed, config, cls, 4, 4 - seed % 2 * 2)
  if seed % 2:
    inputs.pop("pixel_attention_mask")
    options["prompts"].pop("pixel_attention_mask")
  # The names of a file of the model without its head.
  return model, inputs, options | dict(old_names=((r"^model\.", ""),))


def internvl_body(seed: int) -> tuple[Any, dict, dict]:
  """InternVL, Idefics 3, SmolVLM and others without their heads, one after the other."""
  makers = (internvl, idefics3, smolvlm, recipes_n.pixtral, recipes_n.mistral3, recipes_t.fuyu)
  return recipes_p1.without_head(makers[seed % len(makers)](seed))


RECIPES = {
  "idefics2": idefics2,
  "idefics3": idefics3,
  "internvl": internvl,
  "internvl_body": internvl_body,
  "internvl_layers": internvl_layers,
  "smolvlm": smolvlm,
}
