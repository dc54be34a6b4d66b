"""Decoder-only language model: Gemma and its relatives, by fields.

Reference: google-research/big_vision `models/ppp/gemma.py`; Gemma (arXiv
2403.08295), Gemma 2 (arXiv 2408.00118).
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from bigvlm.layers import blocks, dense, masks, norms
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


class Decoder(nn.Module):
  """Decoder-only model. The defaults are Gemma's.

  Attributes:
    vocab, width, depth, hidden, heads, kv_heads, head_dim: sizes.
    tied: logits from the embedding table; else from a `head` of their own.
    embed_scale: embeddings are multiplied by sqrt(width).
    norm, eps, act, gated, bias, out_bias, mlp_bias, qk_norm: see `blocks.LayerSpec`.
    query_scale: factor on the queries; 0 = head_dim ** -0.5.
    windows: self-attention window of each layer of a period, 0 = unlimited; the last period may be
      cut short. window_cuts_blocks: see `masks.visible`.
    rope_bases, rope_scales: of each layer of the period; () = `rope_base` and 1 for all.
    post_norms: norms after attention and MLP as well.
    attn_softcap, final_softcap: c * tanh(x / c) on attention logits and logits; 0 = off.
    rope_base: base of the rotary embedding.
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
  eps: float = 1e-6
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
      softcap=self.attn_softcap,
      post_norms=self.post_norms,
      dropout=self.dropout,
      dtype=self.dtype,
      param_dtype=self.param_dtype,
    )

  @property
  def groups(self) -> tuple:
    """Pattern of layer kinds, for `blocks.Stack`."""
    period = len(self.windows)
    bases, scales = self.rope_bases or (0.0,) * period, self.rope_scales or (1.0,) * period
    kinds = tuple(map(blocks.Kind, self.windows, bases, scales))
    whole, rest = divmod(self.depth, period)
    groups = ((kinds, whole),) * (whole > 0)
    return (*groups, (kinds[:rest], 1)) if rest else groups

  def setup(self):
    for name in ("rope_bases", "rope_scales"):
      given = getattr(self, name)
      if given and len(given) != len(self.windows):
        raise ValueError(
          f"decoder {name} has {len(given)} entries for a period of {len(self.windows)} layers"
        )
    self.embedding = self.param("embedding", self._init_embedding, (self.vocab, self.width))
    self.blocks = blocks.Stack(self.spec, self.groups, self.mode, self.remat)
    dtypes = dict(dtype=self.dtype, param_dtype=self.param_dtype)
    self.final_norm = norms.NORMS[self.norm](self.eps, name="norm", **dtypes)
    if not self.tied:
      shape = (self.width, self.vocab)
      self.head = self.param("head", nn.initializers.lecun_normal(), shape, self.param_dtype)

  def _init_embedding(self, rng: jax.Array, shape: tuple[int, int]) -> jax.Array:
    """Normal rows of length about 1, those of `ordered` smooth."""
    table = nn.initializers.normal(self.width**-0.5)(rng, shape, self.param_dtype)
    first, end = self.ordered
    if first == end:
      return table
    rows = smooth_rows(jax.random.fold_in(rng, 1), end - first, self.width)
    return table.at[first:end].set(rows.astype(self.param_dtype))

  def embed(self, tokens: jax.Array) -> jax.Array:
    """int32 [B, T] -> [B, T, D]; a scale of sqrt(width) is rounded to the compute dtype."""
    x = jnp.take(self.embedding, tokens, axis=0).astype(self.dtype)
    if not self.embed_scale:
      return x
    return x * jnp.asarray(self.width**0.5, self.dtype)

  def __call__(self, fused: Fused, *, cache: Cache | None = None, train: bool = False) -> Decoded:
    """Runs the layers over fused.x [B, L, D]; with a cache, after its columns so far."""
    mask, index, layers = fused.mask, None, None
    keys = caching.columns(cache, mask)
    if cache is not None:
      index, layers = cache.index, cache.layers
    see = {w: masks.visible(mask, keys, w, self.window_cuts_blocks) for w in set(self.windows)}
    ctx = blocks.Ctx(fused.positions, see, index, train=train)
    x, layers = self.blocks(fused.x.astype(self.dtype), ctx, layers)
    if cache is not None:
      cache = caching.advance(cache, layers, keys, fused)
    return Decoded(self.final_norm(x), cache)

  def logits(self, x: jax.Array) -> jax.Array:
    """Hidden states [B, K, D] -> logits [B, K, V] in `logits_dtype`."""
    if self.tied:
      y = dense.scores(x, self.embedding)
    else:
      y = dense.einsum("bkd,dv->bkv", x, self.head, jnp.float32)
    if self.final_softcap:
      y = self.final_softcap * jnp.tanh(y / self.final_softcap)
    return y.astype(self.logits_dtype)

  @nn.nowrap
  def init_cache(self, batch: int, length: int) -> Cache:
    """Empty cache of `length` columns. The host checks lengths: a write past the end clamps."""
    layers = blocks.init_cache(self.spec, self.groups, self.mode, batch, length, self.dtype)
    return caching.empty(layers, batch, length)
