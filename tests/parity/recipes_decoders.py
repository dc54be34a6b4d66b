"""Random Gemmas and PaliGemmas of the reference."""

from typing import Any

import numpy as np

from tests.parity import common

_EOS = 9  # As many ids end a row, so that rows end at different steps.
# From what save_pretrained writes to the names of the files on the hub.
_OLD_NAMES = (
  (r"^model\.(?=(language_model|vision_tower|multi_modal_projector)\.)", ""),
  (r"^language_model\.(?!(model|lm_head)\.)", "language_model.model."),
  (r"^vision_tower\.(?!vision_model\.)", "vision_tower.vision_model."),
)


def _ends(rng: np.random.Generator, vocab: int) -> list[int]:
  return [1, *(int(i) for i in rng.choice(np.arange(3, vocab), _EOS - 1, replace=False))]


def _text(seed: int, **more: Any) -> dict[str, Any]:
  """Sizes of a text model; heads do not divide the width, kv heads are fewer."""
  odd = seed % 2
  rng = np.random.default_rng(seed)
  vocab = 113 + 14 * odd
  return (
    dict(
      vocab_size=vocab,
      hidden_size=80 if odd else 72,
      intermediate_size=104 + 8 * odd,
      num_hidden_layers=3 - odd,
      num_attention_heads=4,
      num_key_value_heads=1 + odd,
      head_dim=14 + 8 * odd,
      rms_norm_eps=1e-5 if odd else 1e-6,
      eos_token_id=_ends(rng, vocab),
      pad_token_id=0,
      bos_token_id=2,
    )
    | more
  )


def _vision(seed: int, side: int) -> dict[str, Any]:
  """A SigLIP of `side` x `side` patches."""
  patch = 6 + seed % 2
  return dict(
    model_type="siglip_vision_model",
    hidden_size=48,
    intermediate_size=88,
    num_hidden_layers=2 + seed % 2,
    num_attention_heads=4,
    image_size=side * patch,
    patch_size=patch,
    vision_use_head=False,
  )


def _mask(seed: int, rows: int, length: int, at_least: int) -> np.ndarray:
  """Left padding, or with an odd seed left and right in turn; `at_least` tokens stay."""
  rng = np.random.default_rng(seed + 1)
  mask = np.ones((rows, length), np.int64)
  for row in range(1, rows):
    n = int(rng.integers(1, length - at_least))
    if seed % 2 and row % 2:
      mask[row, length - n :] = 0
    else:
      mask[row, :n] = 0
  return mask


def _options(inputs: dict[str, np.ndarray], **more: Any) -> dict[str, Any]:
  # The reference continues a right-padded prompt behind its padding, which nobody wants: it gets
  # the same prompts padded on the left.
  mask = inputs["attention_mask"]
  prompts = dict(inputs)
  for key in ("input_ids", "attention_mask", "token_type_ids"):
    if key in inputs:
      rows = zip(inputs[key], mask, strict=True)
      prompts[key] = np.stack([np.roll(row, m[::-1].argmax()) for row, m in rows])
  return dict(outputs=("logits",), mask=mask > 0, generate=9, prompts=prompts) | more


def _random(seed: int, model: Any) -> Any:
  """Every parameter random; scales of which the model uses 1 + theirs are about 0.

  Small embeddings, so that the layers have a say in what comes next.
  """
  import torch

  model = common.randomise(model, seed)
  with torch.no_grad():
    model.get_input_embeddings().weight *= 0.1
  for module in model.modules():
    if type(module).__name__.endswith("RMSNorm"):
      with torch.no_grad():
        module.weight -= 1.0
  return model


def _lm(seed: int, config: Any, cls: Any) -> tuple[Any, dict, dict]:
  config._attn_implementation = "eager"
  model = _random(seed, cls(config))
  rng = np.random.default_rng(seed)
  rows, length = 3, 15 + seed % 2
  mask = _mask(seed, rows, length, 4)
  ids = np.where(mask > 0, rng.integers(3, config.vocab_size, mask.shape), config.pad_token_id)
  inputs = dict(input_ids=ids, attention_mask=mask)
  return model, inputs, _options(inputs)


_YARN = dict(rope_type="yarn", factor=4.0, rope_theta=1_000.0, original_max_position_embeddings=16)


def gemma(seed: int) -> tuple[Any, dict, dict]:
  """Gemma 1; with an odd seed a head of its own, biases and scaled positions; some with YaRN's."""
  import transformers

  more: dict[str, Any] = {}
  if seed % 4 == 2:
    more = dict(rope_parameters=dict(_YARN))
  if seed % 2:
    rope = dict(rope_type="linear", factor=3.0, rope_theta=5_000.0)
    more = dict(tie_word_embeddings=False, attention_bias=True, rope_parameters=rope)
  config = transformers.GemmaConfig(**_text(seed, **more))
  return _lm(seed, config, transformers.GemmaForCausalLM)


def gemma2(seed: int) -> tuple[Any, dict, dict]:
  """Gemma 2: windows shorter than the text, caps low enough to bend."""
  import transformers

  config = transformers.Gemma2Config(
    **_text(seed),
    query_pre_attn_scalar=30,
    sliding_window=4,
    attn_logit_softcapping=2.0,
    final_logit_softcapping=None if seed % 2 else 0.2,
  )
  return _lm(seed, config, transformers.Gemma2ForCausalLM)


def _gemma3(seed: int) -> dict[str, Any]:
  """Layers in an order of their own or by the pattern; positions scaled where all is seen, some
  the way of YaRN."""
  full = dict(rope_type="linear", factor=8.0, rope_theta=1_000_000.0 - 5 * (seed % 1000))
  if seed % 4 > 1:
    full = dict(_YARN)
  local = dict(rope_type="default", rope_theta=10_000.0)
  depth = 5 if seed % 2 else 7
  more: dict[str, Any] = {}
  if seed % 2:
    kinds = ("full_attention", "sliding_attention", "sliding_attention")
    more = dict(layer_types=[kinds[i % 3] for i in range(depth)])
  return dict(
    num_hidden_layers=depth,
    query_pre_attn_scalar=21,
    sliding_window=5,
    rope_parameters=dict(full_attention=full, sliding_attention=local),
    **more,
  )


def gemma3_text(seed: int) -> tuple[Any, dict, dict]:
  """Gemma 3 without vision: norms of queries and keys, two rotary bases, a last cap."""
  import transformers

  config = transformers.Gemma3TextConfig(
    **_text(seed, **_gemma3(seed)), final_logit_softcapping=0.2 if seed % 2 else None
  )
  return _lm(seed, config, transformers.Gemma3ForCausalLM)


def _prompts(
  seed: int, vocab: int, image: int, tokens: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Ids, mask and runs of placeholders [B, T] of rows with one image, two, and one."""
  rng = np.random.default_rng(seed)
  pictures = (1, 2, 1)
  length = 2 * tokens + 9 + seed % 2
  ids = rng.integers(3, vocab, (len(pictures), length))
  ids = np.where(ids == image, 3, ids)
  mask = np.ones_like(ids)
  for row, n in enumerate(pictures):
    body = n * tokens + 6 + row
    left = 0 if seed % 2 and row % 2 == 0 else length - body
    mask[row, :left], mask[row, left + body :] = 0, 0
    for k in range(n):  # Something between two images.
      start = left + k * (tokens + 2)
      ids[row, start : start + tokens] = image
  ids = np.where(mask > 0, ids, 0)
  return ids, mask, ids == image


def _vlm(seed: int, config: Any, cls: Any, tokens: int, types: str) -> tuple[Any, dict, dict]:
  config._attn_implementation = "eager"
  model = _random(seed, cls(config))
  rng = np.random.default_rng(seed)
  vocab, image = config.text_config.vocab_size, config.image_token_index
  ids, mask, run = _prompts(seed, vocab, image, tokens)
  inputs = dict(input_ids=ids, attention_mask=mask)
  if types == "prefix":
    suffix = (np.cumsum(mask[:, ::-1], axis=1)[:, ::-1] <= 3) & (mask > 0)
    # A prompt to go on with is all prefix.
    inputs["token_type_ids"] = suffix.astype(np.int64) * (seed % 2)
  elif types == "images":
    inputs["token_type_ids"] = run.astype(np.int64)
  size = config.vision_config.image_size
  inputs["pixel_values"] = common.pixels(rng, 4, 3, size, size)
  outputs = ("logits", "image_features")
  return model, inputs, _options(inputs, outputs=outputs, old_names=_OLD_NAMES)


def _paligemma(seed: int, text: dict[str, Any], types: str = "prefix") -> tuple[Any, dict, dict]:
  import transformers

  vocab = text["vocab_size"]
  config = transformers.PaliGemmaConfig(
    vision_config=_vision(seed, 3),
    text_config=text,
    image_token_index=vocab + 5 if seed % 2 else vocab - 2,
    projection_dim=text["hidden_size"],
    hidden_size=text["hidden_size"],
    pad_token_id=text["pad_token_id"],
    eos_token_id=text["eos_token_id"],
  )
  return _vlm(seed, config, transformers.PaliGemmaForConditionalGeneration, 9, types)


def paligemma(seed: int) -> tuple[Any, dict, dict]:
  """PaliGemma; with an odd seed a suffix and placeholders that are no row of the table."""
  return _paligemma(seed, _text(seed, model_type="gemma"))


def paligemma_causal(seed: int) -> tuple[Any, dict, dict]:
  """PaliGemma without token types, which the reference runs as a causal model."""
  return _paligemma(seed, _text(seed, model_type="gemma"), types="")


def paligemma2(seed: int) -> tuple[Any, dict, dict]:
  """PaliGemma 2 with windows that are shorter than the prefix."""
  caps = dict(attn_logit_softcapping=2.0, final_logit_softcapping=None if seed % 2 else 0.2)
  sizes = dict(query_pre_attn_scalar=30, sliding_window=4, **caps)
  return _paligemma(seed, _text(seed, model_type="gemma2", **sizes))


def gemma3(seed: int) -> tuple[Any, dict, dict]:
  """Gemma 3: pooled patches, windows shorter than an image, which sees itself."""
  import transformers

  side = 7 if seed % 2 else 6
  config = transformers.Gemma3Config(
    vision_config=_vision(seed, side),
    text_config=_text(seed, model_type="gemma3_text", **_gemma3(seed)),
    mm_tokens_per_image=9,
    image_token_index=110,
    pad_token_id=0,
    eos_token_id=_text(seed)["eos_token_id"],
  )
  return _vlm(seed, config, transformers.Gemma3ForConditionalGeneration, 9, "images")


def gemma3_causal(seed: int) -> tuple[Any, dict, dict]:
  """Gemma 3 without token types: images are as causal as text."""
  import transformers

  config = transformers.Gemma3Config(
    vision_config=_vision(seed, 6),
    text_config=_text(seed, model_type="gemma3_text", **_gemma3(seed)),
    mm_tokens_per_image=9,
    image_token_index=110,
  )
  return _vlm(seed, config, transformers.Gemma3ForConditionalGeneration, 9, "")


RECIPES = {
  "gemma": gemma,
  "gemma2": gemma2,
  "gemma3_text": gemma3_text,
  "paligemma": paligemma,
  "paligemma_causal": paligemma_causal,
  "paligemma2": paligemma2,
  "gemma3": gemma3,
  "gemma3_causal": gemma3_causal,
}
