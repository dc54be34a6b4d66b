"""Image-text matching with a Q-Former: BLIP-2's first stage (arXiv 2301.12597, section 3.2).

References: transformers' `Blip2ForImageTextRetrieval`; for what only training needs, LAVIS'
`Blip2Qformer`.
"""

import math
from collections.abc import Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp

from bigvlm.layers import dense, mlp, norms
from bigvlm.layers.module import Module
from bigvlm.models import towers
from bigvlm.models.two_tower import normalise
from bigvlm.types import Batch, Outputs, Text

_FLOOR = 1e-4  # Added to the probability of every negative.


class WordHead(Module):
  """BERT's language head: a layer with a norm, then the word table, which is tied, and a bias."""

  act: str
  eps: float
  dtype: jnp.dtype = jnp.float32
  param_dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array, table: jax.Array) -> jax.Array:
    """x [B, K, D], table [V, D] -> logits float32 [B, K, V]."""
    dtypes = dict(dtype=self.dtype, param_dtype=self.param_dtype)
    width = x.shape[-1]
    x = dense.Linear("bkd,de->bke", (width, width), name="dense", **dtypes)(x)
    x = norms.LayerNorm(self.eps, name="norm", **dtypes)(mlp.ACTIVATIONS[self.act](x))
    bias = self.param("bias", nn.initializers.zeros, table.shape[:1], self.param_dtype)
    return dense.scores(x, table) + bias.astype(jnp.float32)


class Matching(Module):
  """Queries and text apart, for contrast, and in view of each other, for a yes or no.

  Linear heads `image` and `text` give embeddings, `match` two logits: no, yes.

  Attributes:
    encoders: name -> vision encoder; one slot a row.
    connector: `connectors.qformer.QFormer` with a text.
    out_dim: width of the embeddings.
    temperature_init: of the contrast when training; its logarithm is `t` [1]. None = no contrast
      and no negatives.
    word_head: whether it writes texts too: `words`.
  """

  encoders: Mapping[str, nn.Module]
  connector: nn.Module
  out_dim: int
  temperature_init: float | None = None
  word_head: bool = False

  def setup(self):
    self.towers = towers.Towers(self.encoders, name="encoders")
    former = self.connector
    dtypes = dict(dtype=former.dtype, param_dtype=former.param_dtype)
    shape, eq = (former.width, self.out_dim), "bld,de->ble"
    self.image, self.text = (dense.Linear(eq, shape, **dtypes) for _ in range(2))
    self.match = dense.Linear(eq, (former.width, 2), **dtypes)
    if self.temperature_init is not None:
      init = nn.initializers.constant(math.log(self.temperature_init))
      self.t = self.param("t", init, (1,), jnp.float32)
    if self.word_head:
      self.words = WordHead(former.act, former.eps, **dtypes)

  def __call__(self, batch: Batch, *, train: bool = False) -> Outputs:
    """Heads of what the batch has: `image` [B, Q, D] and `text` [B, D], normalised, and of both
    `match` [B, 2], whose hidden states are `hidden` [B, L, D'], those of the queries first.

    With a word head `batch.target` is the text that is written of the image: `logits` [B, K, V] at
    `target.read`. With a temperature, when training, also `scale` [] and of all images with all
    texts `scores` [B, B], the similarity to the nearest query, and `mismatch` [B, 2, 2]: logits as
    `match` of another image with the text, and of the image with another text. The others are
    drawn (rng "dropout") by the softmax of the scores, among rows with any of `batch.weights`.
    """
    feats, heads, hidden, logits = {}, {}, None, None
    text, encode = batch.text, self.connector.encode
    if batch.media:
      feats = self.towers(batch.media, train=train)
      memory = feats[self.connector.source].x[:, 0]
      if self.word_head and batch.target is not None:
        x, logits = self._written(memory, batch.target, train)
      else:
        x = encode(memory, train=train)
      heads["image"] = normalise(self.image(x))
    if text is not None:
      x = encode(None, text.tokens, text.mask.segment, train=train)
      heads["text"] = normalise(self.text(x[:, :1])[:, 0])
    if batch.media and text is not None and len(text.tokens) == len(memory):
      hidden = encode(memory, text.tokens, text.mask.segment, train=train)
      heads["match"] = self._matched(hidden)
      # At the start too, so that an objective finds all that it will.
      if self.temperature_init is not None and (train or self.is_initializing()):
        heads["scale"] = jnp.exp(self.t[0])
        near = jnp.einsum("nqd,md->nmq", heads["image"], heads["text"])
        heads["scores"] = jnp.max(near, axis=-1)
        heads["mismatch"] = self._mismatched(heads, memory, batch, train)
    return Outputs(logits=logits, hidden=hidden, heads=heads, feats=feats)

  def _matched(self, hidden: jax.Array) -> jax.Array:
    logits = self.match(hidden[:, : self.connector.queries])
    return jnp.mean(logits.astype(jnp.float32), axis=1)

  def _written(self, memory: jax.Array, target: Text, train: bool) -> tuple[jax.Array, jax.Array]:
    """Hidden states of the queries, which see no text, and logits of the text's next tokens."""
    queries, former = self.connector.queries, self.connector
    tokens, real = target.tokens, target.mask.segment
    hidden = former.encode(memory, tokens, real, causal=True, train=train)
    read = jnp.take_along_axis(hidden[:, queries:], target.read[:, :, None], axis=1)
    return hidden[:, :queries], self.words(read, former.embed.embedding)

  def _mismatched(
    self, heads: dict[str, jax.Array], memory: jax.Array, batch: Batch, train: bool
  ) -> jax.Array:
    """`mismatch` of `__call__`."""
    text, rows = batch.text, len(memory)
    scores = jax.lax.stop_gradient(heads["scale"] * heads["scores"])
    real = jnp.ones(rows, bool)
    if batch.weights is not None:
      real = jnp.sum(batch.weights, axis=-1) > 0
    keys = jax.random.split(self.make_rng("dropout"))
    text_of, image_of = (
      jax.random.categorical(key, negatives(x, real))
      for key, x in zip(keys, (scores, scores.T), strict=True)
    )

    def pairs(x: jax.Array, y: jax.Array) -> jax.Array:
      # Two of a row stay beside each other: the rows of a batch that is cut do not move.
      return jnp.stack([x, y], axis=1).reshape(2 * rows, *x.shape[1:])

    tokens, mask = text.tokens, text.mask.segment
    hidden = self.connector.encode(
      pairs(memory[image_of], memory),
      pairs(tokens, tokens[text_of]),
      pairs(mask, mask[text_of]),
      train=train,
    )
    return self._matched(hidden).reshape(rows, 2, 2)


def negatives(scores: jax.Array, real: jax.Array) -> jax.Array:
  """Logarithms of the weights by which a row draws a column that is not its own.

  The weight is the softmax of the row's scores, and a little more, so that any may be drawn.

  Args:
    scores: float32 [B, B]. real: bool [B], rows whose pair may be drawn.

  Returns:
    float32 [B, B], -inf on the diagonal and in columns that are not real.
  """
  share = jax.nn.softmax(jnp.where(real, scores, -1e30), axis=-1) + _FLOOR
  return jnp.where(real & ~jnp.eye(len(scores), dtype=bool), jnp.log(share), -jnp.inf)
