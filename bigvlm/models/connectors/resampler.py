"""Perceiver resampler: a fixed number of latents that look at the patches of a slot.

Flamingo (arXiv 2204.14198); references: transformers' `Idefics2PerceiverResampler` (arXiv
2405.02246) and `IdeficsPerceiverResampler` (arXiv 2306.16527).
"""

from collections.abc import Mapping, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from bigvlm.layers import attention, blocks, mlp, norms
from bigvlm.layers.module import Module
from bigvlm.types import Features, Item, Soft


class PerceiverLayer(nn.Module):
  """Latents attend to the memory and to themselves, then an MLP; norms before, sums after."""

  spec: blocks.LayerSpec
  kind: blocks.Kind

  @nn.compact
  def __call__(self, x: jax.Array, ctx: blocks.Ctx, cache: None) -> tuple[jax.Array, None]:
    """Latents x [B, L, D] -> the same; there is no cache.

    `ctx.memory` is [B, N, D], `ctx.memory_mask` bool [B, 1, 1, N + L].
    """
    s = self.spec
    dtypes = dict(dtype=s.dtype, param_dtype=s.param_dtype)

    def norm(name: str, y: jax.Array) -> jax.Array:
      return norms.NORMS[s.norm](s.eps, name=name, **dtypes)(y)

    attn = attention.Attention(
      s.heads,
      s.kv_heads,
      s.head_dim,
      s.query_scale,
      s.bias,
      qk_norm=s.norm if s.qk_norm else "",
      eps=s.eps,
      name="attn",
      **dtypes,
    )
    h = norm("norm1", x)
    memory = jnp.concatenate([norm("norm_context", ctx.memory), h], axis=1)
    x = x + attn(h, memory, mask=ctx.memory_mask)[0]
    y = mlp.Mlp(s.hidden, s.act, s.gated, s.bias, name="mlp", **dtypes)(norm("norm2", x))
    return x + y, cache


class Resampler(Module):
  """`latents` [L, D] through a stack of `PerceiverLayer`s over the patches of a slot, then `norm`.

  Attributes:
    out_dim: width of the decoder; read only with a `proj`.
    latents: their number L.
    depth, heads, kv_heads, head_dim, hidden, norm, eps, act, gated, qk_norm: of the layers (see
      `blocks.LayerSpec`), which have no biases.
    latents_std: of the latents at the start; 0 = all ones.
    proj: hidden width of a gated MLP without biases, from the patches to `out_dim`; 0 = none: what
      comes out then has the width of the patches.
    proj_act: its activation.
    source: encoder name.
    mode, remat: see `blocks.Stack`.
  """

  out_dim: int
  latents: int
  depth: int
  heads: int
  kv_heads: int
  head_dim: int
  hidden: int
  norm: str = "layer"
  eps: float = 1e-5
  act: str = "relu"
  gated: bool = False
  qk_norm: bool = False
  latents_std: float = 1.0
  proj: int = 0
  proj_act: str = "silu"
  source: str = "image"
  mode: str = "loop"
  remat: str = "none"
  dtype: jnp.dtype = jnp.float32
  param_dtype: jnp.dtype = jnp.float32

  @nn.nowrap
  def rows(self, items: Sequence[Item]) -> list[np.ndarray]:
    """Rows of `Soft.x` that stand for each item, in reading order: the only count of tokens."""
    out = []
    for item in items:
      slots = item.grid[0] * item.tiles[0] * item.tiles[1]
      stop = (item.slot + slots) * self.latents
      out.append(np.arange(item.slot * self.latents, stop, dtype=np.int32))
    return out

  @nn.compact
  def __call__(self, feats: Mapping[str, Features], *, train: bool = False) -> Soft:
    """feats[source].x [B, I, N, D'] -> Soft with x [B, I * L, D].

    Patches of item 0 are padding: no latent sees them.
    """
    f = feats[self.source]
    batch, slots, patches, width = f.x.shape
    dtypes = dict(dtype=self.dtype, param_dtype=self.param_dtype)
    x = f.x.reshape(batch * slots, patches, width).astype(self.dtype)
    if self.proj:
      width = self.out_dim
      x = mlp.Mlp(self.proj, self.proj_act, True, False, width, name="proj", **dtypes)(x)
    init = nn.initializers.normal(self.latents_std) if self.latents_std else nn.initializers.ones
    y = self.param("latents", init, (self.latents, width), self.param_dtype).astype(self.dtype)
    y = jnp.broadcast_to(y, (batch * slots, self.latents, width))
    seen = f.item.reshape(batch * slots, patches) > 0
    seen = jnp.pad(seen, ((0, 0), (0, self.latents)), constant_values=True)[:, None, None]
    ctx = blocks.Ctx(memory=x, memory_mask=seen, train=train)
    stack = blocks.Stack(
      self._spec(width),
      (((blocks.Kind(),), self.depth),),
      self.mode,
      self.remat,
      PerceiverLayer,
      name="blocks",
    )
    y = norms.NORMS[self.norm](self.eps, name="norm", **dtypes)(stack(y, ctx)[0])
    item = jnp.repeat(jnp.max(f.item, axis=2), self.latents, axis=1)
    return Soft(y.reshape(batch, slots * self.latents, width), item)

  @nn.nowrap
  def _spec(self, width: int) -> blocks.LayerSpec:
    return blocks.LayerSpec(
      width,
      self.heads,
      self.hidden,
      kv_heads=self.kv_heads,
      head_dim=self.head_dim,
      query_scale=self.head_dim**-0.5,
      norm=self.norm,
      eps=self.eps,
      act=self.act,
      gated=self.gated,
      bias=False,
      qk_norm=self.qk_norm,
      dtype=self.dtype,
      param_dtype=self.param_dtype,
    )
