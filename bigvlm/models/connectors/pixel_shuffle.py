"""Pixel shuffle: squares of patches become one long vector each, then a matrix or an MLP.

References: transformers' `Idefics3Connector` (arXiv 2408.12637), InternVL's projector (arXiv
2404.16821).
"""

import math
from collections.abc import Mapping, Sequence

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from bigvlm.layers import dense, mlp, norms
from bigvlm.types import Features, Item, Soft


class PixelShuffle(nn.Module):
  """Joins `factor` x `factor` patches, row by row, into one of factor^2 times the width.

  Attributes:
    out_dim: width of the decoder.
    factor: side of the square; the patches form a square themselves, of a multiple of it.
    source: encoder name.
    norm, eps: of the joined patches, a key of `norms.NORMS`; "" = none.
    act: of an MLP (`up`, `down`) of the decoder's width; "" = one matrix (`linear`).
    bias: on the matrices.
  """

  out_dim: int
  factor: int
  source: str = "image"
  norm: str = ""
  eps: float = 1e-5
  act: str = ""
  bias: bool = True
  dtype: jnp.dtype = jnp.float32
  param_dtype: jnp.dtype = jnp.float32

  @nn.nowrap
  def side(self, patches: int) -> int:
    """Side of the square of soft tokens that a slot of so many patches becomes.

    Raises:
      ValueError: they are no square, or one that does not divide into smaller ones.
    """
    side = math.isqrt(patches)
    if side * side != patches or side % self.factor:
      raise ValueError(
        f"{patches} patches are no square of a side that {self.factor} divides: pixel shuffle "
        f"cannot join them in squares of {self.factor} x {self.factor}"
      )
    return side // self.factor

  @nn.nowrap
  def rows(self, items: Sequence[Item]) -> list[np.ndarray]:
    """Rows of `Soft.x` that stand for each item, in reading order: the only count of tokens."""
    out = []
    for item in items:
      t, h, w = item.grid
      slots, n = t * item.tiles[0] * item.tiles[1], self.side(h * w) ** 2
      out.append(np.arange(item.slot * n, (item.slot + slots) * n, dtype=np.int32))
    return out

  @nn.compact
  def __call__(self, feats: Mapping[str, Features], *, train: bool = False) -> Soft:
    """feats[source].x [B, I, N, D] -> Soft with x [B, I * N / factor^2, out_dim].

    Padded patches count as any other; a soft token is of the picture of its slot.

    Raises:
      ValueError: see `side`.
    """
    f, k = feats[self.source], self.factor
    batch, slots, patches, width = f.x.shape
    # Parameters are the same for every size: they may be made at one that does not divide.
    side = math.isqrt(patches)
    n = side // k if self.is_initializing() else self.side(patches)
    x = f.x[:, :, : side * side].reshape(batch, slots, side, side, width)[:, :, : n * k, : n * k]
    x = x.reshape(batch, slots, n, k, n, k, width).transpose(0, 1, 2, 4, 3, 5, 6)
    x = x.reshape(batch, slots * n * n, k * k * width)
    dtypes = dict(dtype=self.dtype, param_dtype=self.param_dtype)
    if self.norm:
      x = norms.NORMS[self.norm](self.eps, name="norm", **dtypes)(x)

    def linear(name: str, x: jnp.ndarray) -> jnp.ndarray:
      shape, init = (x.shape[-1], self.out_dim), nn.initializers.lecun_normal()
      return dense.Linear("bld,de->ble", shape, bias=self.bias, init=init, name=name, **dtypes)(x)

    if self.act:
      x = linear("down", mlp.ACTIVATIONS[self.act](linear("up", x)))
    else:
      x = linear("linear", x)
    item = jnp.repeat(f.item[:, :, :1], n * n, axis=2)
    return Soft(x, item.reshape(batch, slots * n * n))
