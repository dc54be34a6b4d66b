"""Merging connector: squares of neighbouring patches become one token each.

References: `PatchMerger` of transformers' Qwen2-VL (arXiv 2409.12191), the projectors of Mistral 3,
Pixtral (2410.07073) and VideoLLaMA 3 (2501.13106).
"""

from collections.abc import Mapping, Sequence

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from bigvlm.layers import dense, mlp, norms
from bigvlm.types import Features, Item, Soft


class Merger(nn.Module):
  """`norm`, `mix` and `mlp` over squares of packed patches.

  Attributes:
    out_dim: width of the decoder.
    merge: side of the squares; their patches come one after the other.
    source: encoder name; its patches are packed (see `models.vision.packed`).
    norm, eps: of each patch, a key of `norms.NORMS` and its epsilon; "" = none.
    mix: width of a linear map without a bias from a square, before the MLP; 0 = none, the MLP reads
      the square.
    hidden: width within the MLP; 0 = out_dim.
    act, bias: of the MLP.
  """

  out_dim: int
  merge: int = 1
  source: str = "image"
  norm: str = ""
  eps: float = 1e-6
  mix: int = 0
  hidden: int = 0
  act: str = "gelu"
  bias: bool = True
  dtype: jnp.dtype = jnp.float32
  param_dtype: jnp.dtype = jnp.float32

  @nn.nowrap
  def rows(self, items: Sequence[Item]) -> list[np.ndarray]:
    """Rows of `Soft.x` that stand for each item, in reading order: the only count of tokens."""
    out = []
    for item in items:
      (t, h, w), side = item.grid, self.merge * item.merge
      tokens = np.arange(t * (h // side) * (w // side), dtype=np.int32)
      if item.keep is not None:
        tokens = tokens[np.asarray(item.keep, np.int32)]
      out.append(item.slot // self.merge**2 + item.merge**2 * tokens)
    return out

  @nn.compact
  def __call__(self, feats: Mapping[str, Features], *, train: bool = False) -> Soft:
    """feats[source].x [B, 1, N, D] -> Soft with x [B, N / merge ** 2, out_dim]."""
    f, size = feats[self.source], self.merge**2
    batch, _, length, width = f.x.shape
    count = length // size  # What is left at the end is padding.
    x, item = f.x[:, 0, : count * size], f.item[:, 0, : count * size : size]
    dtypes = dict(dtype=self.dtype, param_dtype=self.param_dtype)
    if self.norm:
      x = norms.NORMS[self.norm](self.eps, name="norm", **dtypes)(x)
    if self.mix:
      x = x.reshape(batch, count, size, width)
      shape = (size, width, self.mix)
      x = dense.Linear("bnmd,mde->bne", shape, bias=False, name="mix", **dtypes)(x)
    x = x.reshape(batch, count, -1)
    hidden = self.hidden or self.out_dim
    x = mlp.Mlp(hidden, self.act, False, self.bias, self.out_dim, name="mlp", **dtypes)(x)
    return Soft(x, item)
