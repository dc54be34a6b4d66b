"""Encoders alone: features, and a pooled vector or class logits where the tower has them."""

from collections.abc import Mapping

import flax.linen as nn

from bigvlm.models import towers
from bigvlm.types import Batch, Outputs


class Encoders(nn.Module):
  """The encoders of a batch's media; `feats` and, with a pool, heads [B, D] by name."""

  encoders: Mapping[str, nn.Module]

  def setup(self):
    self.towers = towers.Towers(self.encoders, name="encoders")

  def __call__(self, batch: Batch, *, train: bool = False) -> Outputs:
    """Runs every encoder whose media is in the batch."""
    feats = self.towers(batch.media, train=train)
    pooled = {name: f.pooled[:, 0] for name, f in feats.items() if f.pooled is not None}
    return Outputs(heads=pooled, feats=feats)
