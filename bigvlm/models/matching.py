"""Image-text matching with a Q-Former: BLIP-2's first stage (arXiv 2301.12597, section 3.2).

Reference: transformers' `Blip2ForImageTextRetrieval`.
"""

from collections.abc import Mapping

import flax.linen as nn
import jax.numpy as jnp

from bigvlm.layers import dense
from bigvlm.models import towers
from bigvlm.models.two_tower import normalise
from bigvlm.types import Batch, Outputs


class Matching(nn.Module):
  """Queries and text apart, for contrast, and in view of each other, for a yes or no.

  Linear heads `image` and `text` give embeddings, `match` two logits: no, yes.

  Attributes:
    encoders: name -> vision encoder; one slot a row.
    connector: `connectors.qformer.QFormer` with a text.
    out_dim: width of the embeddings.
  """

  encoders: Mapping[str, nn.Module]
  connector: nn.Module
  out_dim: int

  def setup(self):
    self.towers = towers.Towers(self.encoders, name="encoders")
    former = self.connector
    dtypes = dict(dtype=former.dtype, param_dtype=former.param_dtype)
    shape, eq = (former.width, self.out_dim), "bld,de->ble"
    self.image, self.text = (dense.Linear(eq, shape, **dtypes) for _ in range(2))
    self.match = dense.Linear(eq, (former.width, 2), **dtypes)

  def __call__(self, batch: Batch, *, train: bool = False) -> Outputs:
    """Heads of what the batch has: `image` [B, Q, D] and `text` [B, D], normalised, and of both
    `match` [B, 2], whose hidden states are `hidden` [B, L, D'], those of the queries first."""
    feats, heads, hidden = {}, {}, None
    text, encode = batch.text, self.connector.encode
    if batch.media:
      feats = self.towers(batch.media, train=train)
      memory = feats[self.connector.source].x[:, 0]
      heads["image"] = normalise(self.image(encode(memory, train=train)))
    if text is not None:
      x = encode(None, text.tokens, text.mask.segment, train=train)
      heads["text"] = normalise(self.text(x[:, :1])[:, 0])
    if batch.media and text is not None and len(text.tokens) == len(memory):
      hidden = encode(memory, text.tokens, text.mask.segment, train=train)
      logits = self.match(hidden[:, : self.connector.queries])
      heads["match"] = jnp.mean(logits.astype(jnp.float32), axis=1)
    return Outputs(hidden=hidden, heads=heads, feats=feats)
