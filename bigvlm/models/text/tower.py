"""Text tower of a dual encoder.

References: google-research/big_vision `models/proj/image_text/text_transformer.py`, transformers'
`CLIPTextModel`, `SiglipTextModel` and `Aimv2TextModel`.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from bigvlm.layers import blocks, dense, masks, norms
from bigvlm.layers.module import Module
from bigvlm.models.vision import pool
from bigvlm.models.vision.vit import encoder_spec
from bigvlm.types import Text


class TextTower(Module):
  """Token and learned position embeddings, a stack, and one token through a linear head.

  Attributes:
    width, depth, hidden, heads: sizes; variants are those of ViT.
    vocab: rows of the embedding. length: rows of the position table; 0 = those of the first batch.
    out_dim: width of the embedding that comes out; 0 = no head. head_bias: bias of the head.
    masked: attention follows `text.mask` (causal where its blocks count up), but padding sees what
      a token in its place would, since it may be the one that is pooled. False: every token
      sees every other, padding included, as SigLIP's do; its texts all have full length.
    pool: "last" token, the first "eos" token, the "highest" id (CLIP's end token before
      transformers corrected its number), the "first" token, the "mean" or "max" of all, or "map".
    eos: the end token that "eos" looks for.
    norm, eps, act, gated, bias, out_bias, mlp_bias, layer_scale: see `blocks.LayerSpec`.
    head_dim: of the attention; 0 = width / heads.
    dropout, mode, remat, dtype, param_dtype: as in `ViT`.
  """

  width: int
  depth: int
  hidden: int
  heads: int
  vocab: int
  out_dim: int
  length: int = 0
  head_bias: bool = True
  masked: bool = False
  pool: str = "last"
  eos: int = 1
  norm: str = "layer"
  eps: float = 1e-6
  act: str = "gelu_tanh"
  gated: bool = False
  bias: bool = True
  out_bias: bool | None = None
  mlp_bias: bool | None = None
  layer_scale: float = 0.0
  head_dim: int = 0
  dropout: float = 0.0
  mode: str = "loop"
  remat: str = "none"
  dtype: jnp.dtype = jnp.float32
  param_dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, text: Text, *, train: bool = False) -> jax.Array:
    """text.tokens int32 [B, T] -> [B, out_dim]."""
    dtypes = dict(dtype=self.dtype, param_dtype=self.param_dtype)
    embed = nn.Embed(
      self.vocab,
      self.width,
      embedding_init=nn.initializers.normal(self.width**-0.5),
      name="embed",
      **dtypes,
    )
    used = text.tokens.shape[1]
    shape = (1, self.length or used, self.width)
    init = nn.initializers.normal(self.width**-0.5)
    table = self.param("posemb", init, shape, self.param_dtype)
    x = embed(text.tokens) + table[:, :used].astype(self.dtype)
    groups = (((blocks.Kind(),), self.depth),)
    stack = blocks.Stack(encoder_spec(self), groups, self.mode, self.remat, name="blocks")
    see = {}
    if self.masked:
      queries = text.mask.replace(segment=jnp.maximum(text.mask.segment, 1))
      see = {0: masks.visible(queries, text.mask)}
    x, _ = stack(x, blocks.Ctx(masks=see, train=train))
    x = self._pick(norms.NORMS[self.norm](self.eps, name="norm", **dtypes)(x), text.tokens)
    if not self.out_dim:
      return x
    shape = (self.width, self.out_dim)
    return dense.Linear("bd,de->be", shape, bias=self.head_bias, name="head", **dtypes)(x)

  def _pick(self, x: jax.Array, tokens: jax.Array) -> jax.Array:
    """[B, T, D] -> [B, D]; without an end token the first position, as the reference does."""
    if self.pool in ("last", "first"):
      return x[:, -1 if self.pool == "last" else 0]
    if self.pool in ("mean", "max"):
      return getattr(jnp, self.pool)(x, axis=1)
    if self.pool == "map":
      dtypes = dict(dtype=self.dtype, param_dtype=self.param_dtype)
      return pool.MapHead(self.heads, self.hidden, self.act, self.eps, name="pool", **dtypes)(x)
    at = jnp.argmax(tokens == self.eos if self.pool == "eos" else tokens, axis=1)
    return jnp.take_along_axis(x, at[:, None, None], axis=1)[:, 0]


POOLS = ("last", "eos", "highest", "first", "mean", "max", "map")
