"""Two encoders side by side, one of them at high resolution (DeepSeek-VL, arXiv 2403.05525)."""

import math
from collections.abc import Mapping, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from bigvlm.layers import dense, mlp
from bigvlm.layers.module import Module
from bigvlm.types import Features, Item, Soft


class HybridConnector(Module):
  """Brings the features of `fine` to the patches of `source`, and both to the decoder's width.

  Every `channels` channels of `fine` are resized to four times the grid of `source` and go through
  two convolutions of stride 2 that they share; the first come out as they are, the others times
  `alpha`, which starts at 0. Then `fine` and `coarse` each give half of the decoder's width, and
  an activation and the matrix `out` follow.

  Attributes:
    out_dim: width of the decoder.
    source: encoder whose patches count.
    fine: encoder with a square grid of its own.
    channels: of `fine`'s features that belong together; they are a multiple of it.
    act: a key of `mlp.ACTIVATIONS`.
  """

  out_dim: int
  source: str = "image"
  fine: str = "fine"
  channels: int = 256
  act: str = "gelu"
  dtype: jnp.dtype = jnp.float32
  param_dtype: jnp.dtype = jnp.float32

  @nn.nowrap
  def rows(self, items: Sequence[Item]) -> list[np.ndarray]:
    """Rows of `Soft.x` that stand for each item, in reading order: the only count of tokens."""
    out = []
    for item in items:
      t, h, w = item.grid
      out.append(np.arange(item.slot * h * w, (item.slot + t) * h * w, dtype=np.int32))
    return out

  @nn.compact
  def __call__(self, feats: Mapping[str, Features], *, train: bool = False) -> Soft:
    """feats[source].x [B, I, N, D], feats[fine].x [B, I, M, C] -> Soft with x [B, I * N, out_dim].

    Raises:
      ValueError: N or M is no square number.
    """
    f = feats[self.source]
    batch, slots, patches, width = f.x.shape
    fine = self._downsampled(feats[self.fine].x, _side(patches, self.source))
    half = self.out_dim // 2

    def linear(name: str, x: jax.Array, out: int) -> jax.Array:
      shape = (x.shape[-1], out)
      dtypes = dict(dtype=self.dtype, param_dtype=self.param_dtype)
      return dense.Linear("bld,de->ble", shape, name=name, **dtypes)(x)

    x = f.x.reshape(batch, slots * patches, width)
    fine = fine.reshape(batch, slots * patches, -1)
    both = (linear("fine", fine, half), linear("coarse", x, half))
    x = mlp.ACTIVATIONS[self.act](jnp.concatenate(both, axis=-1))
    return Soft(linear("out", x, self.out_dim), f.item.reshape(batch, slots * patches))

  def _downsampled(self, x: jax.Array, side: int) -> jax.Array:
    """[B, I, M, C] -> [B * I, side, side, 4 * channels]."""
    dtypes = dict(dtype=self.dtype, param_dtype=self.param_dtype)
    size, parts = _side(x.shape[2], self.fine), x.shape[3] // self.channels
    x = x.reshape(-1, size, size, parts, self.channels)
    x = jnp.moveaxis(x, 3, 1).reshape(-1, size, size, self.channels)
    shape = (x.shape[0], 4 * side, 4 * side, self.channels)
    x = jax.image.resize(x.astype(jnp.float32), shape, "linear", antialias=False).astype(self.dtype)
    for n in (1, 2):
      conv = dict(strides=(2, 2), padding=((1, 1), (1, 1)), use_bias=False, name=f"conv{n}")
      x = nn.Conv(2**n * self.channels, (3, 3), **conv, **dtypes)(x)
    x = x.reshape(-1, parts, side, side, 4 * self.channels)
    if parts == 1:
      return x[:, 0]
    alpha = self.param("alpha", nn.initializers.zeros, (parts - 1,), self.param_dtype)
    others = jnp.einsum("npijc,p->nijc", x[:, 1:], alpha.astype(x.dtype))
    return x[:, 0] + others


def _side(count: int, name: str) -> int:
  side = math.isqrt(count)
  if side * side != count:
    raise ValueError(f"the hybrid connector needs a square grid of {name!r}, not {count} patches")
  return side
