"""ViT on pictures of any shape, padded to one size: SigLIP of Idefics 2 and 3.

A patch takes its place in the position table from where it lies in its picture, as a fraction
(arXiv 2307.06304, section 3.1). Reference: transformers' `Idefics2VisionTransformer`.
"""

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from bigvlm.layers import blocks, posemb
from bigvlm.models.vision import vit
from bigvlm.types import Features, Media


class PaddedViT(vit.ViT):
  """ViT whose patches look their positions up, and in which nobody sees padding.

  Fields and parameters are those of `ViT`; there is no class token, stem "conv" or table of sines.

  Attributes:
    table: grid of the position table.
  """

  table: tuple[int, int] = (16, 16)

  resizes = True

  @nn.nowrap
  def places(self, height: int, width: int) -> np.ndarray:
    """Row and column in the table, int32 [height * width, 2], of the patches of a whole grid."""
    y, x = (posemb.buckets(n, side) for n, side in zip((height, width), self.table, strict=True))
    return np.stack(np.meshgrid(y, x, indexing="ij"), axis=-1).reshape(-1, 2)

  @nn.compact
  def __call__(self, media: Media, *, train: bool = False) -> Features:
    """Encodes `media.pixels` [B, I, H, W, 3].

    `media.pos` [B, I, N, 2] has the place of every patch in the table (see `places`), -1 for
    padding, which takes the first; None = the pictures fill their slots.

    Returns:
      Patches [B, I, N, D], item 0 for padding; with a pool, pooled [B, I, D'] of the others.

    Raises:
      ValueError: fields that only `ViT` has.
    """
    if self.stem != "patch" or self.posemb != "learn" or self.has_cls:
      raise ValueError(
        "an encoder of kind 'padded' has stem 'patch', posemb 'learn', no class token"
      )
    batch, slots, height, width, _ = media.pixels.shape
    x = vit.patches(media.pixels.reshape(batch * slots, height, width, 3), self.patch)
    count, real, ctx = x.shape[1], None, blocks.Ctx(train=train)
    item = jnp.broadcast_to(media.item[:, :, None], (batch, slots, count))
    if media.pos is None:
      pos = jnp.asarray(self.places(*self.grid(height, width)))[None]
    else:
      pos = media.pos.reshape(batch * slots, count, 2)
      real = pos[..., 0] >= 0
      see = jnp.broadcast_to(real[:, None, None], (batch * slots, 1, count, count))
      ctx = ctx.replace(masks={0: see})
      item = jnp.where(real.reshape(item.shape), item, 0)
    rows, columns = self.table
    init = nn.initializers.normal(self.posemb_std or self.width**-0.5)
    table = self.param("posemb", init, (1, rows * columns, self.width), self.param_dtype)
    x = self._project(self._normalise(x))
    at = jnp.maximum(pos, 0)
    x = x + table[0][at[..., 0] * columns + at[..., 1]].astype(x.dtype)
    x = self._blocks(x, ctx)
    if self.final_norm == "tokens":
      x = self._norm("norm", x)
    pooled = self._pool(x, real)
    x = x.reshape(batch, slots, count, self.width)
    return Features(x, item, None if pooled is None else pooled.reshape(batch, slots, -1))
