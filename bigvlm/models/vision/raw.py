"""No encoder: the pixels of every patch as they are, for a connector that maps them straight in."""

import flax.linen as nn
import jax.numpy as jnp

from bigvlm.models.vision import vit
from bigvlm.types import Features, Media


class Raw(nn.Module):
  """Patches as features, without parameters (Fuyu).

  Attributes:
    patch: side of a patch.
    pool: "none".
    mean, std: per channel, for uint8 pixels: (x / 255 - mean) / std.
  """

  patch: int
  pool: str = "none"
  mean: tuple[float, ...] = (0.5, 0.5, 0.5)
  std: tuple[float, ...] = (0.5, 0.5, 0.5)
  dtype: jnp.dtype = jnp.float32

  # There is no position table that would have to fit.
  resizes = True

  @nn.nowrap
  def grid(self, height: int, width: int) -> tuple[int, int]:
    """Patch grid (h, w) of an image; pixels beyond whole patches are dropped."""
    return height // self.patch, width // self.patch

  @nn.compact
  def __call__(self, media: Media, *, train: bool = False) -> Features:
    """`media.patches` [B, N, P * P * 3] or `media.pixels` [B, I, H, W, 3] -> patches [B, 1, N, D],
    of I slots one after the other."""
    x, item = media.patches, media.item
    if x is None:
      batch, slots, height, width, _ = media.pixels.shape
      h, w = self.grid(height, width)
      pixels = media.pixels[:, :, : h * self.patch, : w * self.patch]
      x = vit.patches(pixels.reshape(batch * slots, *pixels.shape[2:]), self.patch)
      x = x.reshape(batch, slots * h * w, -1)
      item = jnp.repeat(item, h * w, axis=1)
    if x.dtype == jnp.uint8:
      mean, std = (jnp.tile(jnp.asarray(v) * 255, self.patch**2) for v in (self.mean, self.std))
      x = (x.astype(jnp.float32) - mean) / std
    return Features(x.astype(self.dtype)[:, None], item[:, None])
