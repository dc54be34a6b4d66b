"""A text encoder alone: T5's, and those of its relatives.

References: transformers' `T5EncoderModel` and `UMT5EncoderModel`.
"""

import flax.linen as nn
import jax.numpy as jnp

from bigvlm.layers.module import Module
from bigvlm.models.decoders import encdec
from bigvlm.types import Batch, Outputs


class TextEncoder(Module):
  """Token embeddings and the encoder of an encoder-decoder: `embedding` and `encoder/...`.

  Attributes: as in `encdec.EncDec`.
  """

  vocab: int
  width: int
  depth: int
  hidden: int
  heads: int
  head_dim: int
  act: str = "gelu_tanh"
  gated: bool = False
  eps: float = 1e-6
  buckets: int = 32
  max_distance: int = 128
  own_bias: bool = False
  dropout: float = 0.0
  mode: str = "loop"
  remat: str = "none"
  dtype: jnp.dtype = jnp.float32
  param_dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, batch: Batch, *, train: bool = False) -> Outputs:
    """`hidden` [B, T, D] of `batch.text`, after the last norm."""
    shape = (self.vocab, self.width)
    table = self.param("embedding", nn.initializers.normal(1.0), shape, self.param_dtype)
    x = jnp.take(table, batch.text.tokens, axis=0).astype(self.dtype)
    encoder = encdec.half(self, self.depth, False, name="encoder")
    x, _ = encoder(x, batch.text.mask, batch.text.mask, train=train)
    return Outputs(hidden=x)
