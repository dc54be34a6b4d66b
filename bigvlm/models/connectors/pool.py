"""Pooling connector: patches averaged in squares, a norm, a matrix (Gemma 3, arXiv 2503.19786)."""

import math
from collections.abc import Mapping, Sequence

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from bigvlm.layers import dense, norms
from bigvlm.types import Features, Item, Soft


class PoolConnector(nn.Module):
  """`norm` and `linear`, without a bias, of the means over `kernel` x `kernel` patches.

  Patches beyond the last whole square are dropped. The kernel starts at zero, as in the reference
  and in `LinearConnector`.

  Attributes:
    out_dim: width of the decoder.
    kernel: side of the square; 1 = every patch.
    source: encoder name; its patches form a square.
    norm, eps: a key of `norms.NORMS` and its epsilon.
    zero_init: False starts the kernel as any other.
  """

  out_dim: int
  kernel: int
  source: str = "image"
  norm: str = "rms"
  eps: float = 1e-6
  zero_init: bool = True
  dtype: jnp.dtype = jnp.float32
  param_dtype: jnp.dtype = jnp.float32

  @nn.nowrap
  def rows(self, items: Sequence[Item]) -> list[np.ndarray]:
    """Rows of `Soft.x` that stand for each item, in reading order: the only count of tokens."""
    out = []
    for item in items:
      t, h, w = item.grid
      n = (h // self.kernel) * (w // self.kernel)
      out.append(np.arange(item.slot * n, (item.slot + t) * n, dtype=np.int32))
    return out

  @nn.compact
  def __call__(self, feats: Mapping[str, Features], *, train: bool = False) -> Soft:
    """feats[source].x [B, I, N, D] -> Soft with x [B, I * N', out_dim].

    Raises:
      ValueError: N is no square number.
    """
    f, k = feats[self.source], self.kernel
    batch, slots, patches, width = f.x.shape
    side = math.isqrt(patches)
    if side * side != patches:
      raise ValueError(f"the pool connector needs a square of patches, not {patches} of them")
    n = side // k
    x = f.x.reshape(batch, slots, side, side, width)[:, :, : n * k, : n * k]
    x = x.reshape(batch, slots, n, k, n, k, width).astype(jnp.float32).mean(axis=(3, 5))
    dtypes = dict(dtype=self.dtype, param_dtype=self.param_dtype)
    x = norms.NORMS[self.norm](self.eps, name="norm", **dtypes)(x.astype(self.dtype))
    linear = dense.Linear(
      "bld,de->ble",
      (width, self.out_dim),
      bias=False,
      init=nn.initializers.zeros if self.zero_init else nn.initializers.lecun_normal(),
      name="linear",
      **dtypes,
    )
    item = jnp.repeat(f.item[:, :, :1], n * n, axis=2)
    return Soft(linear(x.reshape(batch, slots * n * n, width)), item.reshape(batch, slots * n * n))
