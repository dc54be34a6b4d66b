"""Decoder-only language model: Gemma and its relatives, by fields.

Reference: google-research/big_vision `models/ppp/gemma.py`; Gemma (arXiv
2403.08295), Gemma 2 (arXiv 2408.00118).
"""

import functools
import itertools
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.core import FrozenDict

from bigvlm.layers import blocks, dense, masks, norms, rope
from bigvlm.layers.module import Module
from bigvlm.models.decoders import caching
from bigvlm.types import Cache, Decoded, Fused

_GEMMA = dict(vocab=257_152, kv_heads=1, head_dim=256)
_GEMMA2 = dict(vocab=257_152, head_dim=256, post_norms=True, attn_softcap=50.0, final_softcap=30.0)

# Published sizes, with the vocabulary that PaliGemma gives them.
VARIANTS = {
  "gemma_2b": dict(width=2048, depth=18, hidden=16_384, heads=8, **_GEMMA),
  "gemma_7b": dict(width=3072, depth=28, hidden=24_576, heads=16, **_GEMMA | dict(kv_heads=16)),
  "gemma2_2b": dict(width=2304, depth=26, hidden=9_216, heads=8, kv_heads=4, **_GEMMA2),
  "gemma2_9b": dict(width=3584, depth=42, hidden=14_336, heads=16, kv_heads=8, **_GEMMA2),
  "gemma2_27b": dict(
    width=4608,
    depth=46,
    hidden=36_864,
    heads=32,
    kv_heads=16,
    query_scale=144**-0.5,
    **_GEMMA2 | dict(head_dim=128),
  ),
}


def smooth_rows(rng: jax.Array, count: int, width: int) -> jax.Array:
  """Rows of length about 1 of which neighbours are alike, f32 [count, width].

  Random Fourier features (Rahimi and Recht, 2007): two rows' product falls with their
  distance. With tied embeddings `<loc0500>` and `<loc0501>` then begin as nearly the same
  word, and what is learnt of one is known of the other.
  """
  scale, phase = jax.random.uniform(rng, (2, width))
  # Length scales from 1/64 to all of the range, as many of each octave.
  omega = 2 * jnp.pi / count * 64.0**scale
  return (2 / width) ** 0.5 * jnp.cos(omega * jnp.arange(count)[:, None] + 2 * jnp.pi * phase)


class Decoder(Module):
  """Decoder-only model. The defaults are Gemma's.

  Attributes:
    vocab, width, depth, hidden, heads, kv_heads, head_dim: sizes.
    tied: logits from the embedding table; else from a `head` of their own.
    head_bias: on the logits.
    embed_dim: of the embeddings and what the logits are made of, if not `width`: `embed_in` and
      `embed_out` lead to it and back (OPT).
    posemb: rows of a table of positions that is added to what comes in, 0 = none; `posemb_offset`
      is the row of position 0. Set `rope_base` to 0 with it.
    final_norm: a norm after the last layer.
    embed_scale: embeddings are multiplied by sqrt(width).
    norm, eps, act, gated, bias, out_bias, mlp_bias, qk_norm, norm_after, parallel: see
      `blocks.LayerSpec`.
    query_scale: factor on the queries; 0 = head_dim ** -0.5.
    windows: self-attention window of each layer of a period, 0 = unlimited; the last period may be
      cut short. window_cuts_blocks: see `masks.visible`.
    rope_bases, rope_scales: of each layer of the period; () = `rope_base` and 1 for all.
    post_norms: norms after attention and MLP as well.
    attn_softcap, final_softcap: c * tanh(x / c) on attention logits and logits; 0 = off.
    rope_base: base of the rotary embedding. rotary: fields of a `rope.Rotary`. rotaries: those of
      layers of the period that have others, by their number as a string.
    extra_vocab: how many of the `vocab`, its last, have tables of their own, `embedding_extra` and
      `head_extra`, so that they can be trained alone.
    out_vocab: tokens that can come out, the first of the vocabulary; 0 = all.
    cross_layers: numbers of the layers, of `depth` in all, that have cross-attention to a memory
      with tanh gates in place of self-attention; `windows` and the like are of the others.
    cross: fields of their `blocks.Cross`.
    dropout: rate after attention and MLP.
    ordered: (first, end): rows of the embedding table that start as a smooth curve (see
      `smooth_rows`), for tokens that stand for numbers.
    mode, remat: see `blocks.Stack`.
    logits_dtype: dtype of the logits that come out.
  """

  vocab: int
  width: int
  depth: int
  hidden: int
  heads: int
  kv_heads: int
  head_dim: int
  tied: bool = True
  embed_scale: bool = True
  norm: str = "rms"
  act: str = "gelu_tanh"
  gated: bool = True
  bias: bool = False
  out_bias: bool | None = None
  mlp_bias: bool | None = None
  qk_norm: bool = False
  query_scale: float = 0.0
  windows: tuple[int, ...] = (0,)
  window_cuts_blocks: bool = True
  rope_bases: tuple[float, ...] = ()
  rope_scales: tuple[float, ...] = ()
  post_norms: bool = False
  attn_softcap: float = 0.0
  final_softcap: float = 0.0
  rope_base: float = 10_000.0
  rotary: Mapping[str, Any] = FrozenDict()
  rotaries: Mapping[str, Mapping[str, Any]] = FrozenDict()
  eps: float = 1e-6
  extra_vocab: int = 0
  out_vocab: int = 0
  cross_layers: tuple[int, ...] = ()
  cross: Mapping[str, Any] = FrozenDict()
  head_bias: bool = False
  embed_dim: int = 0
  posemb: int = 0
  posemb_offset: int = 0
  final_norm: bool = True
  norm_after: bool = False
  parallel: bool = False
  dropout: float = 0.0
  ordered: tuple[int, int] = (0, 0)
  mode: str = "loop"
  remat: str = "none"
  dtype: jnp.dtype = jnp.float32
  param_dtype: jnp.dtype = jnp.float32
  logits_dtype: jnp.dtype = jnp.float32

  @property
  def spec(self) -> blocks.LayerSpec:
    """What the layers share."""
    return blocks.LayerSpec(
      self.width,
      self.heads,
      self.hidden,
      kv_heads=self.kv_heads,
      head_dim=self.head_dim,
      query_scale=self.query_scale or self.head_dim**-0.5,
      norm=self.norm,
      eps=self.eps,
      act=self.act,
      gated=self.gated,
      bias=self.bias,
      out_bias=self.out_bias,
      mlp_bias=self.mlp_bias,
      qk_norm=self.qk_norm,
      rope_base=self.rope_base,
      rotary=rope.rotary(self.rotary),
      cross=blocks.Cross(**self.cross),
      softcap=self.attn_softcap,
      post_norms=self.post_norms,
      norm_after=self.norm_after,
      parallel=self.parallel,
      dropout=self.dropout,
      dtype=self.dtype,
      param_dtype=self.param_dtype,
    )

  @property
  def groups(self) -> tuple:
    """Pattern of layer kinds, for `blocks.Stack`."""
    period = len(self.windows)
    bases, scales = self.rope_bases or (0.0,) * period, self.rope_scales or (1.0,) * period
    own_rope = {int(n): rope.rotary(fields) for n, fields in self.rotaries.items()}
    rotaries = [own_rope.get(n) for n in range(period)]
    kinds = tuple(map(blocks.Kind, self.windows, bases, scales, rotaries))
    if not self.cross_layers:
      return blocks.periodic(kinds, self.depth)
    own = itertools.cycle(kinds)
    cross = blocks.Kind(cross=True, alone=True, tanh_gated=True)
    layers = [cross if n in self.cross_layers else next(own) for n in range(self.depth)]
    return blocks.periodic(blocks.period(layers), self.depth)

  def setup(self):
    for name in ("rope_bases", "rope_scales"):
      given = getattr(self, name)
      if given and len(given) != len(self.windows):
        raise ValueError(
          f"decoder {name} has {len(given)} entries for a period of {len(self.windows)} layers"
        )
    rows = self.vocab - self.extra_vocab
    inner = self.embed_dim or self.width
    self.embedding = self.param("embedding", self._init_embedding, (rows, inner))
    if self.extra_vocab:
      init, shape = nn.initializers.normal(inner**-0.5), (self.extra_vocab, inner)
      self.embedding_extra = self.param("embedding_extra", init, shape, self.param_dtype)
    self.blocks = blocks.Stack(self.spec, self.groups, self.mode, self.remat)
    dtypes = dict(dtype=self.dtype, param_dtype=self.param_dtype)
    if self.final_norm:
      self.last_norm = norms.NORMS[self.norm](self.eps, name="norm", **dtypes)
    if self.posemb:
      shape = (self.posemb, self.width)
      init = nn.initializers.normal(self.width**-0.5)
      self.places = self.param("posemb", init, shape, self.param_dtype)
    if inner != self.width:
      linear = functools.partial(dense.Linear, "bld,de->ble", bias=False, **dtypes)
      self.embed_in = linear((inner, self.width))
      self.embed_out = linear((self.width, inner))
    if self.head_bias:
      shape, zeros = (self.out_vocab or rows,), nn.initializers.zeros
      self.head_shift = self.param("head_bias", zeros, shape, self.param_dtype)
    if not self.tied:
      init, shape = nn.initializers.lecun_normal(), (inner, self.out_vocab or rows)
      self.head = self.param("head", init, shape, self.param_dtype)
      if self.extra_vocab:
        shape = (inner, self.extra_vocab)
        self.head_extra = self.param("head_extra", init, shape, self.param_dtype)

  def _init_embedding(self, rng: jax.Array, shape: tuple[int, int]) -> jax.Array:
    """Normal rows of length about 1, those of `ordered` smooth."""
    table = nn.initializers.normal(shape[1] ** -0.5)(rng, shape, self.param_dtype)
    first, end = self.ordered
    if first == end:
      return table
    rows = smooth_rows(jax.random.fold_in(rng, 1), end - first, shape[1])
    return table.at[first:end].set(rows.astype(self.param_dtype))

  def embed(self, tokens: jax.Array) -> jax.Array:
    """int32 [B, T] -> [B, T, D]; a scale of sqrt(width) is rounded to the compute dtype."""
    table = self.embedding
    if self.extra_vocab:
      table = jnp.concatenate([table, self.embedding_extra])
    x = jnp.take(table, tokens, axis=0).astype(self.dtype)
    if self.embed_dim not in (0, self.width):
      x = self.embed_in(x)
    if not self.embed_scale:
      return x
    return x * jnp.asarray(self.width**0.5, self.dtype)

  def __call__(self, fused: Fused, *, cache: Cache | None = None, train: bool = False) -> Decoded:
    """Runs the layers over fused.x [B, L, D]; with a cache, after its columns so far, and for the
    states at `fused.read` alone."""
    mask, index, layers = fused.mask, None, None
    keys = caching.columns(cache, mask)
    if cache is not None:
      index, layers = cache.index, cache.layers
    see = {w: masks.visible(mask, keys, w, self.window_cuts_blocks) for w in set(self.windows)}
    memory = None if fused.memory is None else fused.memory.x.astype(self.dtype)
    across = dict(memory=memory, memory_mask=caching.seen(cache, fused))
    read = caching.read(cache, fused)
    ctx = blocks.Ctx(fused.positions, see, index, read=read, train=train, **across)
    x = fused.x.astype(self.dtype)
    if self.posemb:
      x = x + jnp.take(self.places, fused.positions + self.posemb_offset, axis=0).astype(x.dtype)
    x, layers = self.blocks(x, ctx, layers)
    if cache is not None:
      cache = caching.advance(cache, layers, keys, fused)
    return Decoded(self.last_norm(x) if self.final_norm else x, cache)

  def logits(self, x: jax.Array) -> jax.Array:
    """Hidden states [B, K, D] -> logits [B, K, V] in `logits_dtype`."""
    if self.embed_dim not in (0, self.width):
      x = self.embed_out(x)
    if self.tied:
      parts = [dense.scores(x, self.embedding)]
      if self.extra_vocab:
        parts.append(dense.scores(x, self.embedding_extra))
    else:
      parts = [dense.einsum("bkd,dv->bkv", x, self.head, jnp.float32)]
      if self.extra_vocab:
        parts.append(dense.einsum("bkd,dv->bkv", x, self.head_extra, jnp.float32))
    if self.head_bias:
      parts[0] += self.head_shift.astype(jnp.float32)
    y = jnp.concatenate(parts, axis=-1) if self.extra_vocab else parts[0]
    if self.final_softcap:
      y = self.final_softcap * jnp.tanh(y / self.final_softcap)
    return y.astype(self.logits_dtype)

  @nn.nowrap
  def init_cache(self, batch: int, length: int) -> Cache:
    """Empty cache of `length` columns. The host checks lengths: a write past the end clamps."""
    layers = blocks.init_cache(self.spec, self.groups, batch, length, self.dtype)
    return caching.empty(layers, batch, length)
