"""Random BLIP-2 and InstructBLIP of the reference, around OPT, Llama and T5, and for matching."""

from typing import Any

import numpy as np

from tests.parity import common

_TEXT_VOCAB = 61  # Of the Q-Former's own text.


def _sizes(seed: int) -> dict[str, Any]:
  """Image encoder and Q-Former; layers that are no whole number of periods."""
  odd = seed % 2
  patch = 6 - odd
  return dict(
    vision_config=dict(
      hidden_size=48 - 12 * odd,
      intermediate_size=40,
      num_hidden_layers=2 + odd,
      num_attention_heads=4 - odd,
      image_size=4 * patch,
      patch_size=patch,
      qkv_bias=not odd,
      layer_norm_eps=1e-5 if odd else 1e-6,
    ),
    qformer_config=dict(
      vocab_size=_TEXT_VOCAB,
      hidden_size=20 if odd else 24,
      num_hidden_layers=4 if odd else 3,
      num_attention_heads=4,
      intermediate_size=28,
      max_position_embeddings=17,
      cross_attention_frequency=3 if odd else 2,
    ),
    num_query_tokens=5 - 2 * odd,
  )


def _ends(seed: int, vocab: int) -> list[int]:
  """Many ids end a row, so that rows end at different steps."""
  rng = np.random.default_rng(seed)
  return [2, *(int(i) for i in rng.choice(np.arange(4, vocab - 2), 26, replace=False))]


def _opt(seed: int) -> dict[str, Any]:
  odd = seed % 2
  vocab = 113 + 14 * odd
  return dict(
    model_type="opt",
    vocab_size=vocab,
    hidden_size=40 if odd else 32,
    word_embed_proj_dim=40 if odd else 32,
    ffn_dim=44,
    num_hidden_layers=2,
    num_attention_heads=4,
    max_position_embeddings=48,
    tie_word_embeddings=not odd,
    eos_token_id=_ends(seed, vocab),
    pad_token_id=1,
    bos_token_id=2,
  )


def _llama(seed: int) -> dict[str, Any]:
  odd = seed % 2
  vocab = 113 + 14 * odd
  return dict(
    model_type="llama",
    vocab_size=vocab,
    hidden_size=40 if odd else 32,
    intermediate_size=44,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=6 if odd else 10,
    tie_word_embeddings=bool(odd),
    eos_token_id=_ends(seed, vocab),
    pad_token_id=0,
    bos_token_id=1,
  )


def _t5(seed: int) -> dict[str, Any]:
  odd = seed % 2
  vocab = 99 + 12 * odd
  return dict(
    model_type="t5",
    vocab_size=vocab,
    d_model=40 if odd else 32,
    d_kv=6 if odd else 10,
    d_ff=28,
    num_layers=2,
    num_heads=4,
    relative_attention_num_buckets=12,
    relative_attention_max_distance=20,
    feed_forward_proj="gated-gelu",
    decoder_start_token_id=0,
    tie_word_embeddings=bool(odd),
    eos_token_id=_ends(seed, vocab)[:12],
    pad_token_id=0,
  )


def _prompts(
  rng: np.random.Generator, images: list[int], size: int, token: int, vocab: int, *, first: bool
) -> tuple[np.ndarray, np.ndarray]:
  """Ids and mask of as many rows, with places for `images` of each.

  Padded on the left or, as the reference's processors do it, with the places in front of padding.
  """
  words = [int(n) for n in rng.integers(4, 9, len(images))]
  length = max(n + w for n, w in zip([n * size for n in images], words, strict=True))
  ids = np.ones((len(images), length), np.int64)
  mask = np.zeros_like(ids)
  for row, (n, w) in enumerate(zip(images, words, strict=True)):
    text = rng.integers(4, vocab - 2, w)
    if first:
      ids[row, : n * size], mask[row, : n * size] = token, 1
      line = text
    else:  # A word behind every picture.
      parts = [x for k in range(n) for x in (np.full(size, token), text[k : k + 1])]
      line = np.concatenate([*parts, text[n:]])
    ids[row, length - len(line) :], mask[row, length - len(line) :] = line, 1
  return ids, mask


def _model(seed: int, cls: Any, config: Any) -> Any:
  import torch

  config._attn_implementation = "eager"
  model = cls(config)
  text = model.language_model
  if config.text_config.model_type == "t5" and seed % 2 == 0:  # A head of its own.
    text.lm_head.weight = torch.nn.Parameter(torch.zeros_like(text.lm_head.weight))
    for owner, key in ((text, "lm_head.weight"), (model, "language_model.lm_head.weight")):
      owner.all_tied_weights_keys.pop(key)
  model = common.randomise(model, seed)
  with torch.no_grad():
    # Small embeddings, so that the layers have a say in what comes next.
    text.get_input_embeddings().weight.mul_(0.1)
    model.query_tokens.mul_(5.0)
    for name, p in text.named_parameters():
      if name.endswith("Attention.q.weight"):  # T5's queries have no scale.
        p.mul_(config.text_config.d_kv**-0.5)
  return model


def _generator(
  seed: int, cls: str, text: dict[str, Any], *, asked: bool = False, frames: int = 0
) -> tuple[Any, dict, dict]:
  """A model that writes, its inputs and options; `frames` of a video, 0 = images."""
  import transformers

  rng = np.random.default_rng(seed)
  sizes, vocab = _sizes(seed), text["vocab_size"]
  token = vocab - 1
  name = "video_token_index" if frames else "image_token_index"
  config = getattr(transformers, f"{cls}Config")(text_config=text, **{name: token}, **sizes)
  model = _model(seed, getattr(transformers, f"{cls}ForConditionalGeneration"), config)
  images = [1, 2, 0, 1] if seed % 2 else [2, 1, 1]
  count, places = sum(images), sizes["num_query_tokens"] * max(frames, 1)
  ids, mask = _prompts(rng, images, places, token, vocab, first=seed % 2 == 1)
  side = sizes["vision_config"]["image_size"]
  shape = (count, frames, 3, side, side) if frames else (count, 3, side, side)
  inputs = dict(input_ids=ids, attention_mask=mask, pixel_values=common.pixels(rng, *shape))
  if asked:
    length = 6 + seed % 3
    inputs |= dict(
      qformer_input_ids=rng.integers(1, _TEXT_VOCAB, (count, length)),
      qformer_attention_mask=common.padding(rng, count, length, "left" if seed % 2 else "right"),
    )
  seen = mask
  if text["model_type"] == "t5":
    start = np.zeros((len(images), 1), np.int64)
    words = rng.integers(2, vocab - 2, (len(images), 6))
    inputs["decoder_input_ids"] = np.concatenate([start, words], axis=1)
    seen = inputs["decoder_attention_mask"] = common.padding(rng, len(images), 7, "right")
  features = "video_features" if frames else "image_features"
  options = dict(outputs=("logits", "qformer_output", features), mask=seen > 0, generate=8)
  return model, inputs, options


def blip2_opt(seed: int) -> tuple[Any, dict, dict]:
  """BLIP-2 around OPT."""
  return _generator(seed, "Blip2", _opt(seed))


def blip2_t5(seed: int) -> tuple[Any, dict, dict]:
  """BLIP-2 around FLAN-T5."""
  return _generator(seed, "Blip2", _t5(seed))


def instructblip_llama(seed: int) -> tuple[Any, dict, dict]:
  """InstructBLIP around Vicuna."""
  return _generator(seed, "InstructBlip", _llama(seed), asked=True)


def instructblip_t5(seed: int) -> tuple[Any, dict, dict]:
  """InstructBLIP around FLAN-T5."""
  return _generator(seed, "InstructBlip", _t5(seed), asked=True)


def instructblip_video(seed: int) -> tuple[Any, dict, dict]:
  """InstructBLIP for videos, of three or four frames."""
  text = _t5(seed) if seed % 2 else _llama(seed)
  return _generator(seed, "InstructBlipVideo", text, asked=True, frames=3 + seed % 2)


def blip2_retrieval(seed: int) -> tuple[Any, dict, dict]:
  """BLIP-2's matching; with an odd seed the prompts begin with the places of the queries."""
  import transformers

  rng = np.random.default_rng(seed)
  sizes = _sizes(seed)
  queries, rows, length = sizes["num_query_tokens"], 3, 7 + seed % 2
  token = _TEXT_VOCAB + 2  # The reference cuts it off before it looks anything up.
  sizes["qformer_config"]["use_qformer_text_input"] = True
  config = transformers.Blip2Config(
    text_config=dict(model_type="opt", hidden_size=16, num_attention_heads=2),
    image_text_hidden_size=24,
    image_token_index=token if seed % 2 else None,
    **sizes,
  )
  config._attn_implementation = "eager"
  model = common.randomise(transformers.Blip2ForImageTextRetrieval(config), seed)
  ids = rng.integers(1, _TEXT_VOCAB, (rows, length))
  mask = common.padding(rng, rows, length, "right")
  if seed % 2:
    ids = np.concatenate([np.full((rows, queries), token), ids], axis=1)
    mask = np.concatenate([np.ones((rows, queries), np.int64), mask], axis=1)
  side = sizes["vision_config"]["image_size"]
  inputs = dict(
    input_ids=ids,
    attention_mask=mask,
    pixel_values=common.pixels(rng, rows, 3, side, side),
    use_image_text_matching_head=np.bool_(True),
  )
  outputs = ("logits_per_image", "logits_per_text", "text_embeds", "image_embeds", "itc_score")
  return model, inputs, dict(outputs=outputs)


RECIPES = {
  "blip2_opt": blip2_opt,
  "blip2_retrieval": blip2_retrieval,
  "blip2_t5": blip2_t5,
  "instructblip_llama": instructblip_llama,
  "instructblip_t5": instructblip_t5,
  "instructblip_video": instructblip_video,
}
