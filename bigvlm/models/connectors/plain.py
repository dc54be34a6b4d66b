"""No connector: the encoder's tokens as they are, for a decoder that projects them itself."""

from collections.abc import Mapping, Sequence

import flax.linen as nn
import numpy as np

from bigvlm.types import Features, Item, Soft


class PlainConnector(nn.Module):
  """All tokens of every slot of the encoder `source`, without parameters.

  Attributes:
    extra: tokens of a slot beside its patches (a class token).
  """

  source: str = "image"
  extra: int = 0

  @nn.nowrap
  def rows(self, items: Sequence[Item]) -> list[np.ndarray]:
    """Rows of `Soft.x` that stand for each item, in reading order: the only count of tokens."""
    out = []
    for item in items:
      t, h, w = item.grid
      size, slots = h * w + self.extra, t * item.tiles[0] * item.tiles[1]
      out.append(np.arange(item.slot * size, (item.slot + slots) * size, dtype=np.int32))
    return out

  @nn.compact
  def __call__(self, feats: Mapping[str, Features], *, train: bool = False) -> Soft:
    """feats[source].x [B, I, N, D] -> Soft with x [B, I * N, D]."""
    f = feats[self.source]
    batch, slots, tokens, width = f.x.shape
    return Soft(f.x.reshape(batch, slots * tokens, width), f.item.reshape(batch, slots * tokens))
