"""Small models and batches for tests, here so that users can test their own parts with them."""

from typing import Any

import numpy as np

from bigvlm.types import Batch, MaskSpec, Media, Text

TINY_VIT = dict(kind="vit", width=32, depth=2, hidden=48, heads=4, patch=8)
TINY_VLM = dict(
  kind="vlm",
  encoders=dict(image=TINY_VIT),
  connector=dict(kind="linear", zero_init=False),
  decoder=dict(
    kind="decoder", vocab=64, width=40, depth=2, hidden=48, heads=4, kv_heads=2, head_dim=12
  ),
)
TINY_TWO_TOWER = dict(
  kind="two_tower",
  encoders=dict(image=TINY_VIT | dict(pool="map")),
  text=dict(kind="text_tower", width=24, depth=2, hidden=32, heads=2, vocab=64),
)


def prefix_lm_batch(
  prefixes: list[int],
  suffixes: list[int],
  *,
  image_tokens: int = 4,
  text_len: int = 10,
  size: int = 16,
  vocab: int = 64,
  seed: int = 0,
) -> Batch:
  """A prefix-LM batch of random tokens and pixels, laid out as a processor lays it out.

  Args:
    prefixes, suffixes: number of prefix and of suffix tokens of each row.
    image_tokens: placeholders in front; `size` must give as many patches.
    text_len: positions after them.
    size: image height and width. vocab: tokens are below it. seed: of the values.

  Returns:
    Batch with T = image_tokens + text_len and K = text_len; row b reads its last
    prefix position and all suffix positions but the last.
  """
  rng = np.random.default_rng(seed)
  rows, length = len(prefixes), image_tokens + text_len
  tokens = rng.integers(3, vocab, (rows, length)).astype(np.int32)
  index = np.broadcast_to(np.arange(length, dtype=np.int32), (rows, length))
  start = image_tokens + np.array(prefixes)[:, None]
  end = start + np.array(suffixes)[:, None]
  segment = (index < end).astype(np.int32)
  block = np.maximum(index - start + 1, 0).astype(np.int32)
  media = np.where(index < image_tokens, index, -1).astype(np.int32)
  k = np.arange(text_len)[None]
  weights = (k < np.array(suffixes)[:, None]).astype(np.float32)
  read = np.where(weights > 0, start - 1 + k, 0).astype(np.int32)
  labels = np.take_along_axis(tokens, np.minimum(read + 1, length - 1), axis=1)
  text = Text(tokens, MaskSpec(segment, block, index), index, media, read)
  return Batch(text, {"image": image(rows, size, rng)}, labels, weights)


def image(rows: int, size: int, rng: np.random.Generator) -> Media:
  """Random uint8 pictures, [rows, 1, size, size, 3]."""
  pixels = rng.integers(0, 256, (rows, 1, size, size, 3)).astype(np.uint8)
  return Media(pixels, np.ones((rows, 1), np.int32))


def contrastive_batch(rows: int, *, text_len: int = 6, size: int = 16, seed: int = 0) -> Batch:
  """A batch of random pictures and texts for a two-tower model."""
  rng = np.random.default_rng(seed)
  tokens = rng.integers(3, 64, (rows, text_len)).astype(np.int32)
  index = np.broadcast_to(np.arange(text_len, dtype=np.int32), tokens.shape)
  ones, zeros = np.ones_like(tokens), np.zeros_like(tokens)
  read = np.full((rows, 1), text_len - 1, np.int32)
  text = Text(tokens, MaskSpec(ones, zeros, index), index, -ones, read)
  weights = np.ones((rows, 1), np.float32)
  return Batch(text, {"image": image(rows, size, rng)}, np.zeros_like(read), weights)


def shaken(params: Any, seed: int = 0, size: float = 0.1) -> Any:
  """Parameters plus noise, so that zeros and ones that an init leaves hide nothing."""
  import jax

  rng = np.random.default_rng(seed)
  return jax.tree.map(lambda x: x + (size * rng.standard_normal(x.shape)).astype(x.dtype), params)
