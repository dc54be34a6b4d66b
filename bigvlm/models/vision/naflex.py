"""ViT on patches of pictures of any shape: NaFlex of SigLIP 2 (arXiv 2502.14786).

References: google-research/big_vision `models/proj/image_text/naflex_vit.py`, transformers'
`Siglip2VisionModel`.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from bigvlm.layers import blocks, dense, posemb
from bigvlm.models.vision import vit
from bigvlm.types import Features, Media


class NaFlex(vit.ViT):
  """ViT whose position table is resized to the grid of each picture, with antialiasing.

  Fields and parameters are those of `ViT`; there is no class token, stem "conv" or table of sines.

  Attributes:
    table: grid of the position table.
  """

  table: tuple[int, int] = (16, 16)

  resizes = True

  @nn.compact
  def __call__(self, media: Media, *, train: bool = False) -> Features:
    """Encodes `media.patches` [B, N, P * P * 3], or `media.pixels` [B, I, H, W, 3].

    Patches see those of their own picture; padding (item 0) sees all of its row and is seen by
    none. A grid is one more than the largest position in a picture. A pool is over all pictures of
    a row of patches, so such a row should then hold one.

    Returns:
      Patches [B, 1, N, D] or, of pixels, [B, I, N, D] and, with a pool, pooled [B, 1 or I, D'].

    Raises:
      ValueError: fields that only `ViT` has.
    """
    if self.stem != "patch" or self.posemb != "learn" or self.has_cls:
      raise ValueError(
        "an encoder of kind 'naflex' has stem 'patch', posemb 'learn', no class token"
      )
    if media.patches is None:
      batch, slots, height, width, _ = media.pixels.shape
      x = vit.patches(media.pixels.reshape(batch * slots, height, width, 3), self.patch)
      grid = np.stack(np.mgrid[: height // self.patch, : width // self.patch], axis=-1)
      pos = jnp.broadcast_to(grid.reshape(1, -1, 2), (*x.shape[:2], 2))
      real = jnp.ones(x.shape[:2], jnp.int32)
      item = jnp.broadcast_to(media.item[:, :, None], (batch, slots, x.shape[1]))
    else:
      batch, slots, pos, real = media.patches.shape[0], 1, media.pos[..., -2:], media.item
      x = media.patches.reshape(*media.patches.shape[:2], self.patch, self.patch, 3)
      item = media.item[:, None]
    queries, keys = real[:, :, None], real[:, None]
    near = (queries == keys) | (queries == 0) | (keys == 0)
    x = self._project(self._normalise(x))
    x = x + self._positions(pos, near).astype(x.dtype)
    see = near & (keys > 0)
    x = self._blocks(x, blocks.Ctx(masks={0: see[:, None]}, train=train))
    if self.final_norm == "tokens":
      x = self._norm("norm", x)
    pooled = self._pool(x, real > 0)
    x = x.reshape(batch, slots, -1, x.shape[-1])
    return Features(x, item, None if pooled is None else pooled.reshape(batch, slots, -1))

  def _positions(self, pos: jax.Array, near: jax.Array) -> jax.Array:
    """Embeddings float32 [B, N, D] of positions [B, N, 2] in grids that span the `near` patches."""
    rows, columns = self.table
    init = nn.initializers.normal(self.posemb_std or self.width**-0.5)
    table = self.param("posemb", init, (1, rows * columns, self.width), self.param_dtype)
    size = jnp.max(jnp.where(near[..., None], pos[:, None], 0), axis=2) + 1
    y = posemb.bilinear_antialias_at(pos[..., 0], size[..., 0], rows)
    x = posemb.bilinear_antialias_at(pos[..., 1], size[..., 1], columns)
    weights = (y[..., :, None] * x[..., None, :]).reshape(*pos.shape[:2], rows * columns)
    return dense.einsum("bnt,td->bnd", weights, table[0].astype(jnp.float32))
