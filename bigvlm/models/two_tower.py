"""Contrastive dual encoder: SigLIP (arXiv 2303.15343), CLIP (arXiv 2103.00020), LiT (2111.07991).

Reference: google-research/big_vision `models/proj/image_text/two_towers.py`.
"""

import math
from collections.abc import Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp

from bigvlm.layers.module import Module
from bigvlm.models import towers
from bigvlm.types import Batch, Outputs


class TwoTower(Module):
  """Image tower, text tower, temperature `t` [1] (its logarithm) and bias `b` [1].

  Attributes:
    encoders: {"image": tower with a pool}.
    text: text tower.
    temperature_init: 10 for the sigmoid loss, 1 / 0.07 for the softmax loss.
    bias_init: -10 for the sigmoid loss; None = no bias (softmax loss).
    scale_range: smallest and largest factor exp(t) that is used; None = any.
  """

  encoders: Mapping[str, nn.Module]
  text: nn.Module
  temperature_init: float = 10.0
  bias_init: float | None = -10.0
  scale_range: tuple[float, float] | None = None

  def setup(self):
    self.towers = towers.Towers(self.encoders, name="encoders")
    init = nn.initializers.constant
    self.t = self.param("t", init(math.log(self.temperature_init)), (1,), jnp.float32)
    if self.bias_init is not None:
      self.b = self.param("b", init(self.bias_init), (1,), jnp.float32)

  def __call__(self, batch: Batch, *, train: bool = False) -> Outputs:
    """Embeds what the batch has: heads `image` and `text` [B, D] float32, `scale`, `bias`."""
    t = self.t[0]
    if self.scale_range is not None:
      t = jnp.clip(t, *(math.log(bound) for bound in self.scale_range))
    heads = {"scale": jnp.exp(t), "bias": jnp.float32(0)}
    if self.bias_init is not None:
      heads["bias"] = self.b[0]
    feats = {}
    if batch.media:
      feats = self.towers(batch.media, train=train)
      heads["image"] = normalise(feats["image"].pooled[:, 0])
    if batch.text is not None:
      heads["text"] = normalise(self.text(batch.text, train=train))
    return Outputs(heads=heads, feats=feats)


def normalise(x: jax.Array) -> jax.Array:
  """x [B, D] -> x / (|x| + 1e-8), float32 (the reference's epsilon)."""
  x = x.astype(jnp.float32)
  # The square root has no gradient at 0, which a row of a bad record may give.
  square = jnp.sum(jnp.square(x), axis=-1, keepdims=True)
  norm = jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1.0)), 0.0)
  return x / (norm + 1e-8)
