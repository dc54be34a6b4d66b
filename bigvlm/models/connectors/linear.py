"""Linear connector: one soft token a patch (PaliGemma, arXiv 2407.07726)."""

from collections.abc import Mapping, Sequence

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from bigvlm.layers import dense
from bigvlm.types import Features, Item, Soft


class LinearConnector(nn.Module):
  """`linear` maps the patches of the encoder `source` to the decoder's width.

  The kernel starts at zero, as in the reference: the decoder begins as if it saw
  nothing. `zero_init=False` starts it as any other kernel. `packed`: the encoder gives one row of
  patches, of which a picture takes those from `Item.slot` on.
  """

  out_dim: int
  source: str = "image"
  zero_init: bool = True
  packed: bool = False
  dtype: jnp.dtype = jnp.float32
  param_dtype: jnp.dtype = jnp.float32

  @nn.nowrap
  def rows(self, items: Sequence[Item]) -> list[np.ndarray]:
    """Rows of `Soft.x` that stand for each item, in reading order: the only count of tokens."""
    out = []
    for item in items:
      t, h, w = item.grid
      if self.packed:
        out.append(np.arange(item.slot, item.slot + t * h * w, dtype=np.int32))
        continue
      out.append(np.arange(item.slot * h * w, (item.slot + t) * h * w, dtype=np.int32))
    return out

  @nn.compact
  def __call__(self, feats: Mapping[str, Features], *, train: bool = False) -> Soft:
    """feats[source].x [B, I, N, D] -> Soft with x [B, I * N, out_dim]."""
    f = feats[self.source]
    batch, slots, patches, width = f.x.shape
    linear = dense.Linear(
      "bld,de->ble",
      (width, self.out_dim),
      init=nn.initializers.zeros if self.zero_init else nn.initializers.lecun_normal(),
      dtype=self.dtype,
      param_dtype=self.param_dtype,
      name="linear",
    )
    x = linear(f.x.reshape(batch, slots * patches, width))
    return Soft(x, f.item.reshape(batch, slots * patches))
