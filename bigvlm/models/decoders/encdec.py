"""Encoder-decoder language model: T5 and its relatives, by fields.

T5 (arXiv 1910.10683), T5 1.1 (its gated layers: arXiv 2002.05202), mT5 (arXiv 2010.11934), UMT5
(arXiv 2304.09151), FLAN-T5 (arXiv 2210.11416), UL2 (arXiv 2205.05131). References: transformers'
`T5ForConditionalGeneration`, `UMT5ForConditionalGeneration`.
"""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from bigvlm.layers import blocks, dense, masks, norms, relpos
from bigvlm.layers.module import Module
from bigvlm.models.decoders import caching
from bigvlm.types import Cache, Decoded, Fused, MaskSpec, Memory


def _sizes(width: int, hidden: int, heads: int, depth: int, head_dim: int = 64) -> dict:
  return dict(width=width, hidden=hidden, heads=heads, depth=depth, head_dim=head_dim)


_NEW = {
  "small": _sizes(512, 1024, 6, 8),
  "base": _sizes(768, 2048, 12, 12),
  "large": _sizes(1024, 2816, 16, 24),
  "xl": _sizes(2048, 5120, 32, 24),
  "xxl": _sizes(4096, 10_240, 64, 24),
}
_OLD = {
  "small": _sizes(512, 2048, 8, 6),
  "base": _sizes(768, 3072, 12, 12),
  "large": _sizes(1024, 4096, 16, 24),
  "3b": _sizes(1024, 16_384, 32, 24, 128),
  "11b": _sizes(1024, 65_536, 128, 24, 128),
}
_UL2 = dict(act="silu", gated=True, tied=False)

# Published sizes. "t5_v1_1" are FLAN-T5's too. "ul2_3b" and "ul2_32b" are the text models of PaLI-3
# and PaLI-X, of which the papers give the number of layers and parameters, but not the widths.
VARIANTS = {
  **{f"t5_{k}": dict(vocab=32_128, act="relu", **v) for k, v in _OLD.items()},
  **{f"t5_v1_1_{k}": dict(vocab=32_128, gated=True, tied=False, **v) for k, v in _NEW.items()},
  **{f"mt5_{k}": dict(vocab=250_112, gated=True, tied=False, **v) for k, v in _NEW.items()},
  **{
    f"umt5_{k}": dict(
      vocab=256_384, gated=True, tied=False, scale_logits=True, own_bias=True, **_NEW[k]
    )
    for k in ("small", "base", "xl", "xxl")
  },
  "ul2_20b": dict(vocab=32_128, **_UL2, **_sizes(4096, 16_384, 16, 32, 256)),
  "ul2_3b": dict(vocab=250_112, gated=True, **_NEW["xl"]),
  "ul2_32b": dict(vocab=250_112, **_UL2, **_sizes(4096, 16_384, 16, 50, 256)),
}


def spec(m: Any) -> blocks.LayerSpec:
  """What the layers share of a module with the fields of `EncDec`."""
  return blocks.LayerSpec(
    m.width,
    m.heads,
    m.hidden,
    kv_heads=m.heads,
    head_dim=m.head_dim,
    query_scale=1.0,
    query_init=m.head_dim**-0.5,
    norm="rms_plain",
    eps=m.eps,
    act=m.act,
    gated=m.gated,
    bias=False,
    dropout=m.dropout,
    dtype=m.dtype,
    param_dtype=m.param_dtype,
  )


class Half(nn.Module):
  """The encoder or, with `cross`, the decoder: `blocks`, a bias `relpos` for all, a `norm`.

  Attributes:
    spec: what the layers share. depth: their number.
    cross: attention to a memory in every layer, and relative positions that look back only.
    buckets, max_distance: see `relpos.buckets`.
    own_bias: every layer has a bias of its own, and there is none for all.
    mode, remat: see `blocks.Stack`.
  """

  spec: blocks.LayerSpec
  depth: int
  cross: bool
  buckets: int
  max_distance: int
  own_bias: bool
  mode: str
  remat: str

  @property
  def groups(self) -> tuple:
    """Pattern of layer kinds, for `blocks.Stack`."""
    return (((blocks.Kind(cross=self.cross),), self.depth),)

  @nn.compact
  def __call__(
    self,
    x: jax.Array,
    queries: MaskSpec,
    keys: MaskSpec,
    *,
    memory: jax.Array | None = None,
    memory_mask: jax.Array | None = None,
    cache: Cache | None = None,
    train: bool = False,
  ) -> tuple[jax.Array, dict | None]:
    """x [B, L, D] and who sees whom -> hidden [B, L, D] and the layers of the cache."""
    spec = self.spec
    dtypes = dict(dtype=spec.dtype, param_dtype=spec.param_dtype)
    sizes, orders, bias = (self.buckets, self.max_distance, not self.cross), None, None
    if self.own_bias:
      spec, orders = dataclasses.replace(spec, relative=sizes), (queries.order, keys.order)
    else:
      relative = relpos.RelativeBias(spec.heads, *sizes, name="relpos", **dtypes)
      bias = relative(queries.order, keys.order)
    ctx = blocks.Ctx(
      masks={0: masks.visible(queries, keys)},
      index=None if cache is None else cache.index,
      bias=bias,
      orders=orders,
      memory=memory,
      memory_mask=memory_mask,
      train=train,
    )
    stack = blocks.Stack(spec, self.groups, self.mode, self.remat, name="blocks")
    x, layers = stack(x.astype(spec.dtype), ctx, None if cache is None else cache.layers)
    return norms.NORMS[spec.norm](spec.eps, name="norm", **dtypes)(x), layers


def half(m: Any, depth: int, cross: bool, **kw) -> Half:
  """A half of a module with the fields of `EncDec`."""
  return Half(spec(m), depth, cross, m.buckets, m.max_distance, m.own_bias, m.mode, m.remat, **kw)


class EncDec(Module):
  """Encoder-decoder. The defaults are T5's.

  The encoder reads the fused text, `encode`; the decoder reads the target with that memory.
  Positions are relative to each other alone (`MaskSpec.order`).

  Attributes:
    vocab, width, hidden, heads, head_dim: sizes.
    depth: layers of the encoder. decoder_depth: of the decoder; 0 = as many.
    tied: logits from the embedding table; else from a `head` of their own.
    scale_logits: hidden states are multiplied by width ** -0.5 before the logits; None = as `tied`
      (T5 with tied embeddings; mT5 never).
    act, gated, eps: see `blocks.LayerSpec`.
    buckets, max_distance: of the relative positions, see `relpos.buckets`. own_bias: see `Half`.
    dropout: rate after attention and MLP.
    mode, remat: see `blocks.Stack`.
    logits_dtype: dtype of the logits that come out.
  """

  vocab: int
  width: int
  depth: int
  hidden: int
  heads: int
  head_dim: int
  decoder_depth: int = 0
  tied: bool = True
  scale_logits: bool | None = None
  act: str = "gelu_tanh"
  gated: bool = False
  eps: float = 1e-6
  buckets: int = 32
  max_distance: int = 128
  own_bias: bool = False
  dropout: float = 0.0
  mode: str = "loop"
  remat: str = "none"
  dtype: jnp.dtype = jnp.float32
  param_dtype: jnp.dtype = jnp.float32
  logits_dtype: jnp.dtype = jnp.float32

  @property
  def spec(self) -> blocks.LayerSpec:
    """What the layers share."""
    return spec(self)

  def _half(self, cross: bool, **kw) -> Half:
    return half(self, self.decoder_depth or self.depth if cross else self.depth, cross, **kw)

  def setup(self):
    init = nn.initializers.normal(1.0)
    shape = (self.vocab, self.width)
    self.embedding = self.param("embedding", init, shape, self.param_dtype)
    self.encoder = self._half(False)
    self.decoder = self._half(True)
    if not self.tied:
      init = nn.initializers.lecun_normal()
      self.head = self.param("head", init, (self.width, self.vocab), self.param_dtype)

  def embed(self, tokens: jax.Array) -> jax.Array:
    """int32 [B, T] -> [B, T, D]."""
    return jnp.take(self.embedding, tokens, axis=0).astype(self.dtype)

  def encode(self, fused: Fused, *, train: bool = False) -> Memory:
    """What the decoder's cross-attention reads: fused.x [B, S, D] through the encoder."""
    x, _ = self.encoder(fused.x, fused.mask, fused.mask, train=train)
    return Memory(x, fused.mask.segment)

  def __call__(self, fused: Fused, *, cache: Cache | None = None, train: bool = False) -> Decoded:
    """Runs the decoder over fused.x [B, L, D]; with a cache, after its columns so far, and for
    the states at `fused.read` alone.

    Raises:
      ValueError: there is neither a memory nor a cache that holds one.
    """
    memory, label = None, None if cache is None else cache.label
    if fused.memory is not None:
      memory, label = fused.memory.x, fused.memory.label
    elif cache is None:
      raise ValueError("an encoder-decoder needs Batch.target, what its decoder begins with")
    keys = caching.columns(cache, fused.mask)
    x, layers = self.decoder(
      fused.x,
      fused.mask,
      keys,
      memory=memory,
      memory_mask=masks.across(fused.mask.segment, label),
      cache=cache,
      train=train,
    )
    x = blocks.at(x, caching.read(cache, fused))
    if cache is not None:
      cache = caching.advance(cache, layers, keys, fused).replace(label=label)
    return Decoded(x, cache)

  def logits(self, x: jax.Array) -> jax.Array:
    """Hidden states [B, K, D] -> logits [B, K, V] in `logits_dtype`."""
    if self.tied if self.scale_logits is None else self.scale_logits:
      x = x * jnp.asarray(self.width**-0.5, x.dtype)
    if self.tied:
      y = dense.scores(x, self.embedding)
    else:
      y = dense.einsum("bkd,dv->bkv", x, self.head, jnp.float32)
    return y.astype(self.logits_dtype)

  @nn.nowrap
  def init_cache(self, batch: int, length: int, memory: int) -> Cache:
    """Empty cache of `length` columns of the decoder, for a memory of `memory` rows."""
    groups = self._half(True, parent=None).groups
    layers = blocks.init_cache(self.spec, groups, batch, length, self.dtype, memory)
    return caching.empty(layers, batch, length).replace(label=jnp.zeros((batch, memory), jnp.int32))
