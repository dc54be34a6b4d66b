"""Q-Former: learned queries that read an encoder's features (BLIP-2, arXiv 2301.12597).

With a text of their own the queries read what is asked for (InstructBLIP, arXiv 2305.06500).
Reference: transformers' `Blip2QFormerModel` and `InstructBlipQFormerModel`.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from bigvlm.layers import attention, blocks, dense, mlp, norms
from bigvlm.layers.module import Module
from bigvlm.types import Features, Item, Soft


@dataclasses.dataclass(frozen=True)
class Spec:
  """Fields that all layers share; `text`: they have an MLP for the text as well."""

  width: int
  heads: int
  hidden: int
  act: str
  eps: float
  text: bool
  dropout: float
  dtype: Any
  param_dtype: Any


@struct.dataclass
class Ctx(blocks.Ctx):
  """What every layer may read: of `blocks.Ctx` the memory, which the queries read, and `masks[0]`
  (bool [B or 1, 1, 1 or L, L]).

  Attributes:
    queries: how many rows of x, its first, are queries; the others are text.
  """

  queries: int = struct.field(pytree_node=False, default=0)


class Layer(nn.Module):
  """BERT's layer, norms behind the sums; with `Kind.cross` the queries attend to the memory.

  Queries and text see each other in the self-attention; each has an MLP of its own.
  """

  spec: Spec
  kind: blocks.Kind

  @nn.compact
  def __call__(self, x: jax.Array, ctx: Ctx, cache: None) -> tuple[jax.Array, None]:
    """x [B, L, D] -> the same; there is no cache."""
    s = self.spec
    dtypes = dict(dtype=s.dtype, param_dtype=s.param_dtype)

    def add(norm: str, x: jax.Array, y: jax.Array) -> jax.Array:
      if s.dropout:
        y = nn.Dropout(s.dropout, deterministic=not ctx.train)(y)
      return norms.LayerNorm(s.eps, name=norm, **dtypes)(x + y)

    def attend(name: str, x: jax.Array, memory: jax.Array | None, mask: jax.Array | None):
      dim = s.width // s.heads
      sizes = (s.heads, s.heads, dim, dim**-0.5)
      return attention.Attention(*sizes, name=name, **dtypes)(x, memory, mask=mask)[0]

    def forward(name: str, x: jax.Array) -> jax.Array:
      return mlp.Mlp(s.hidden, s.act, name=name, **dtypes)(x)

    x = add("norm1", x, attend("attn", x, None, ctx.masks.get(0)))
    parts, text = [], x[:, ctx.queries :]
    if ctx.queries:
      q = x[:, : ctx.queries]
      if self.kind.cross:
        q = add("norm_cross", q, attend("cross", q, ctx.memory, None))
      parts.append(add("norm2", q, forward("mlp", q)))
    if text.shape[1]:
      parts.append(add("text_norm2", text, forward("text_mlp", text)))
    return jnp.concatenate(parts, axis=1), cache


class QFormer(Module):
  """`queries` learned queries a slot, a stack in which they read it, and a linear map.

  Attributes:
    out_dim: width of the decoder; 0 = no map.
    queries: their number. width, depth, heads, hidden: of the stack.
    act, eps: of its layers.
    every: every so many layers, from the first on, the queries attend to the features.
    vocab: rows of the embedding of the text; 0 = it has no text.
    length: rows of the text's position table.
    source: encoder name.
    dropout: rate, when training.
    mode, remat: see `blocks.Stack`.
  """

  out_dim: int
  queries: int = 32
  width: int = 768
  depth: int = 12
  heads: int = 12
  hidden: int = 3072
  act: str = "gelu"
  eps: float = 1e-12
  every: int = 2
  vocab: int = 0
  length: int = 512
  source: str = "image"
  dropout: float = 0.0
  mode: str = "loop"
  remat: str = "none"
  dtype: jnp.dtype = jnp.float32
  param_dtype: jnp.dtype = jnp.float32

  def setup(self):
    dtypes = dict(dtype=self.dtype, param_dtype=self.param_dtype)
    init = nn.initializers.normal(0.02)
    self.query = self.param("query", init, (1, self.queries, self.width), self.param_dtype)
    if self.vocab:
      self.embed = nn.Embed(self.vocab, self.width, embedding_init=init, **dtypes)
      shape = (1, self.length, self.width)
      self.posemb = self.param("posemb", init, shape, self.param_dtype)
    self.norm = norms.LayerNorm(self.eps, **dtypes)
    sizes = (self.width, self.heads, self.hidden, self.act, self.eps)
    spec = Spec(*sizes, bool(self.vocab), self.dropout, **dtypes)
    self.blocks = blocks.Stack(spec, self._groups(), self.mode, self.remat, layer=Layer)
    if self.out_dim:
      init = nn.initializers.normal(0.02)
      shape = (self.width, self.out_dim)
      self.linear = dense.Linear("bld,de->ble", shape, init=init, **dtypes)

  @nn.nowrap
  def _groups(self) -> tuple:
    period = (blocks.Kind(cross=True), *(blocks.Kind(),) * (self.every - 1))
    whole, rest = divmod(self.depth, self.every)
    groups = ((period, whole),) if whole else ()
    return groups + (((period[:rest], 1),) if rest else ())

  @nn.nowrap
  def rows(self, items: Sequence[Item]) -> list[np.ndarray]:
    """Rows of `Soft.x` that stand for each item, in reading order: the only count of tokens."""
    n = self.queries
    return [np.arange(i.slot * n, (i.slot + i.grid[0]) * n, dtype=np.int32) for i in items]

  def encode(
    self,
    memory: jax.Array | None,
    tokens: jax.Array | None = None,
    mask: jax.Array | None = None,
    *,
    causal: bool = False,
    train: bool = False,
  ) -> jax.Array:
    """Queries that read `memory`, a text, or both in view of each other.

    Args:
      memory: features [B, M, D']; None = the text alone.
      tokens: int32 [B, T]; None = the queries alone.
      mask: [B, T], 0 = padding of the text, which is not seen; None = none.
      causal: the text is written: a token sees the queries and the tokens up to itself, and the
        queries, which see no text, are what they are without one.
      train: whether dropout is on.

    Returns:
      Hidden states [B, L, D], those of the queries first.

    Raises:
      ValueError: a text for a model without, or one that is longer than the position table.
    """
    count = 0 if memory is None else self.queries
    batch = (tokens if memory is None else memory).shape[0]
    parts, see = [], None
    if count:
      shape = (batch, count, self.width)
      parts.append(jnp.broadcast_to(self.query.astype(self.dtype), shape))
    if tokens is not None:
      used = tokens.shape[1]
      if not self.vocab or used > self.length:
        raise ValueError(f"a text of {used} tokens, but the Q-Former reads {self.length} at most")
      parts.append(self.embed(tokens) + self.posemb[:, :used].astype(self.dtype))
      if mask is not None:
        see = jnp.concatenate([jnp.ones((batch, count), bool), mask > 0], axis=1)[:, None, None]
      if causal:
        row = jnp.arange(count + used)
        past = (row <= jnp.maximum(row[:, None], count - 1))[None, None]
        see = past if see is None else see & past
    x = self.norm(jnp.concatenate(parts, axis=1))
    seen = {} if see is None else {0: see}
    return self.blocks(x, Ctx(masks=seen, memory=memory, train=train, queries=count))[0]

  def __call__(
    self,
    feats: Mapping[str, Features],
    *,
    extra: Mapping[str, jax.Array] | None = None,
    train: bool = False,
  ) -> Soft:
    """feats[source].x [B, I, N, D'] -> Soft with x [B, I * queries, out_dim].

    The text of every slot is in `extra`: int32 [B, I, T] `query_tokens`, and `query_mask`, 0 =
    padding. `Soft.hidden` is [B, I, L, D], queries and text, from before the linear map.

    Raises:
      ValueError: a model with a text gets none.
    """
    f, extra = feats[self.source], extra or {}
    batch, slots, _, width = f.x.shape

    def flat(x: jax.Array | None) -> jax.Array | None:
      return None if x is None else x.reshape(batch * slots, -1)

    tokens, mask = flat(extra.get("query_tokens")), flat(extra.get("query_mask"))
    if self.vocab and tokens is None:
      if not self.is_initializing():
        raise ValueError("this Q-Former reads a text with every picture: extra['query_tokens']")
      tokens = jnp.zeros((batch * slots, 1), jnp.int32)
    x = self.encode(f.x.reshape(batch * slots, -1, width), tokens, mask, train=train)
    found = x[:, : self.queries]
    if self.out_dim:
      found = self.linear(found)
    item = jnp.repeat(f.item[:, :, :1], self.queries, axis=2).reshape(batch, -1)
    found = found.reshape(batch, slots * self.queries, -1)
    return Soft(found, item, hidden=x.reshape(batch, slots, *x.shape[1:]))
