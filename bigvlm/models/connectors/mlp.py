"""MLP connector: every token through a norm, a matrix, an activation and a matrix (LLaVA 1.5)."""

from collections.abc import Mapping, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from bigvlm.layers import mlp, norms
from bigvlm.types import Features, Item, Soft


class Projector(nn.Module):
  """`norm`, where there is one, and `mlp`: two matrices with an activation between them.

  Attributes:
    out_dim: width of what comes out.
    hidden: width between the matrices; 0 = `out_dim`.
    act, bias: of the matrices. norm, eps: a key of `norms.NORMS` and its epsilon; "" = none.
  """

  out_dim: int
  hidden: int = 0
  act: str = "gelu"
  bias: bool = True
  norm: str = ""
  eps: float = 1e-5
  dtype: jnp.dtype = jnp.float32
  param_dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """x [B, L, D] -> [B, L, out_dim]."""
    dtypes = dict(dtype=self.dtype, param_dtype=self.param_dtype)
    if self.norm:
      x = norms.NORMS[self.norm](self.eps, name="norm", **dtypes)(x)
    hidden = self.hidden or self.out_dim
    return mlp.Mlp(hidden, self.act, False, self.bias, self.out_dim, name="mlp", **dtypes)(x)


class MlpConnector(nn.Module):
  """One soft token a token of the encoder `source`, by `Projector`, whose fields it has.

  With `video`, videos come from an encoder of that name, with as many patches and through the same
  matrices (Video-LLaVA, arXiv 2311.10122): a slot is then the tokens of one after the other's.

  Attributes:
    out_dim, hidden, act, bias, norm, eps: see `Projector`.
    source: encoder name. front: tokens that it gives in front of its patches.
    skip: tokens of each of its slots, from the first on, that are left out.
    video, video_front: name of the videos' encoder and its tokens in front; "" = videos come from
      `source` too.
  """

  out_dim: int
  hidden: int = 0
  act: str = "gelu"
  bias: bool = True
  norm: str = ""
  eps: float = 1e-5
  source: str = "image"
  front: int = 0
  skip: int = 0
  video: str = ""
  video_front: int = 0
  dtype: jnp.dtype = jnp.float32
  param_dtype: jnp.dtype = jnp.float32

  @nn.nowrap
  def rows(self, items: Sequence[Item]) -> list[np.ndarray]:
    """Rows of `Soft.x` that stand for each item, in reading order: the only count of tokens."""
    out = []
    for item in items:
      t, h, w = item.grid
      size = n = self.front + h * w
      own = np.arange(self.skip, n)
      if self.video:
        size += self.video_front + h * w
        own = np.arange(n, size) if item.video else own
      slots = np.arange(item.slot, item.slot + t)[:, None] * size
      out.append((slots + own).reshape(-1).astype(np.int32))
    return out

  @nn.compact
  def __call__(self, feats: Mapping[str, Features], *, train: bool = False) -> Soft:
    """feats[source].x [B, I, N, D] -> Soft with x [B, I * N, out_dim].

    With `video` x is [B, max(I, J) * (N + M), out_dim] of J slots of M tokens.
    """
    project = Projector(
      self.out_dim,
      self.hidden,
      self.act,
      self.bias,
      self.norm,
      self.eps,
      name="projector",
      dtype=self.dtype,
      param_dtype=self.param_dtype,
    )

    def rows(f: Features) -> tuple[jax.Array, jax.Array]:
      batch, slots, tokens, width = f.x.shape
      x = project(f.x.reshape(batch, slots * tokens, width))
      return x.reshape(batch, slots, tokens, self.out_dim), f.item

    names = (self.source, self.video) if self.video else (self.source,)
    parts = [rows(feats[name]) if name in feats else None for name in names]
    if self.video:
      parts = self._same_slots(parts)
    x = jnp.concatenate([x for x, _ in parts], axis=2)
    item = jnp.concatenate([item for _, item in parts], axis=2)
    return Soft(x.reshape(x.shape[0], -1, self.out_dim), item.reshape(x.shape[0], -1))

  def _same_slots(self, parts: list) -> list:
    """Pads what the two encoders gave to the same number of slots; zeros for one without media."""
    given = next(p for p in parts if p is not None)
    fronts = self.front, self.video_front
    patches = given[0].shape[2] - fronts[parts.index(given)]
    slots = max(p[0].shape[1] for p in parts if p is not None)
    out = []
    for part, front in zip(parts, fronts, strict=True):
      if part is None:
        x, item = given
        shape = (x.shape[0], 0, front + patches)
        part = jnp.zeros((*shape, self.out_dim), x.dtype), jnp.zeros(shape, item.dtype)
      more = slots - part[0].shape[1]
      out.append(tuple(jnp.pad(a, ((0, 0), (0, more)) + ((0, 0),) * (a.ndim - 2)) for a in part))
    return out
