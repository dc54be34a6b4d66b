"""The vision-language model: encoders -> connector -> fusion -> decoder."""

import inspect
from collections.abc import Callable, Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp

from bigvlm.layers import blocks
from bigvlm.models import towers
from bigvlm.types import Batch, Cache, Fused, MaskSpec, Outputs


class VLM(nn.Module):
  """One forward for every system.

  Attributes:
    encoders: name -> vision encoder.
    connector: features -> soft tokens; None for a language model without encoders.
    fusion: (text, embeddings, soft) -> what the decoder reads.
    decoder: language model.
  """

  encoders: Mapping[str, nn.Module]
  connector: nn.Module | None
  fusion: Callable
  decoder: nn.Module

  def setup(self):
    self.towers = towers.Towers(self.encoders, name="encoders")

  def __call__(self, batch: Batch, *, cache: Cache | None = None, train: bool = False) -> Outputs:
    """Logits float32 [B, K, V] at `read`. With an empty cache this is the prefill.

    With a `batch.target` (encoder-decoders) the text is what is encoded, the target what is
    decoded and read; otherwise it is all one text.
    """
    feats = self.towers(batch.media, train=train)
    soft = None
    if feats:
      # Host facts of the pictures, for a connector that asks for them.
      asks = "extra" in inspect.signature(type(self.connector).__call__).parameters
      soft = self.connector(feats, **({"extra": batch.extra} if asks else {}), train=train)
    fused = self.fusion(batch.text, self.decoder.embed(batch.text.tokens), soft)
    if batch.target is not None:
      memory, t = self.decoder.encode(fused, train=train), batch.target
      fused = Fused(self.decoder.embed(t.tokens), t.positions, t.mask, t.read, memory)
    out = self.decoder(fused, cache=cache, train=train)
    logits = self.decoder.logits(out.x if cache is not None else blocks.at(out.x, fused.read))
    return Outputs(logits=logits, hidden=out.x, cache=out.cache, feats=feats, soft=soft)

  def step(self, tokens: jax.Array, cache: Cache) -> tuple[jax.Array, Cache]:
    """One token a row: int32 [B] -> logits [B, V] and the cache with one more column."""
    seen = cache.mask.segment != 0  # Padding that looks has a place in its row too.

    def after(x):  # The next value of a row: one past its largest so far.
      return jnp.max(jnp.where(seen, x, -1), axis=1, keepdims=True) + 1

    segment = jnp.max(cache.mask.segment, axis=1, keepdims=True)
    mask = MaskSpec(segment, after(cache.mask.block), after(cache.mask.order))
    read = jnp.zeros((tokens.shape[0], 1), jnp.int32)
    embeds = self.decoder.embed(tokens[:, None])
    out = self.decoder(Fused(embeds, cache.pos[:, None], mask, read), cache=cache)
    return self.decoder.logits(out.x)[:, 0], out.cache

  @nn.nowrap
  def init_cache(self, batch: Batch, new: int) -> Cache:
    """Empty cache for the prefill of `batch` and `new` tokens after it."""
    rows, length = batch.text.tokens.shape
    if batch.target is None:
      return self.decoder.init_cache(rows, length + new)
    return self.decoder.init_cache(rows, batch.target.tokens.shape[1] + new, length)
