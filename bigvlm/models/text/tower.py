"""Bidirectional text tower of a dual encoder.

Reference: google-research/big_vision `models/proj/image_text/text_transformer.py`.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from bigvlm.layers import blocks, dense, norms
from bigvlm.models.vision.vit import encoder_spec
from bigvlm.types import Text


class TextTower(nn.Module):
  """Token and learned position embeddings, a stack, and the last token through a linear head.

  Attributes:
    width, depth, hidden, heads: sizes; variants are those of ViT.
    vocab: rows of the embedding.
    out_dim: width of the embedding that comes out.
    dropout, mode, remat, dtype, param_dtype: as in `ViT`.
  """

  width: int
  depth: int
  hidden: int
  heads: int
  vocab: int
  out_dim: int
  dropout: float = 0.0
  mode: str = "loop"
  remat: str = "none"
  dtype: jnp.dtype = jnp.float32
  param_dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, text: Text, *, train: bool = False) -> jax.Array:
    """text.tokens int32 [B, T], padded with the end token -> [B, out_dim].

    Padding is attended, as the reference does: the last position is always an end token.
    """
    dtypes = dict(dtype=self.dtype, param_dtype=self.param_dtype)
    embed = nn.Embed(
      self.vocab,
      self.width,
      embedding_init=nn.initializers.normal(self.width**-0.5),
      name="embed",
      **dtypes,
    )
    shape = (1, text.tokens.shape[1], self.width)
    init = nn.initializers.normal(self.width**-0.5)
    table = self.param("posemb", init, shape, self.param_dtype)
    x = embed(text.tokens) + table.astype(self.dtype)
    spec = encoder_spec(
      self.width, self.heads, self.hidden, self.dropout, self.dtype, self.param_dtype
    )
    groups = (((blocks.Kind(),), self.depth),)
    stack = blocks.Stack(spec, groups, self.mode, self.remat, name="blocks")
    x, _ = stack(x, blocks.Ctx(train=train))
    x = norms.LayerNorm(name="norm", **dtypes)(x)[:, -1]
    head = dense.Linear("bd,de->be", (self.width, self.out_dim), name="head", **dtypes)
    return head(x)
