"""How media reach the decoder: in the places of tokens that stand for them, or as a memory."""

import jax
import jax.numpy as jnp

from bigvlm.types import Fused, Memory, Soft, Text


def scatter(text: Text, embeds: jax.Array, soft: Soft | None) -> Fused:
  """Splices media into the text.

  Args:
    text: its `media_index` [B, T] names the row of `soft` for each placeholder, -1 = text. The
      host has checked the bound: an index that is too large would give NaN here.
    embeds: [B, T, D] token embeddings.
    soft: rows [B, S, D], or None when the batch has no media.

  Returns:
    Fused with x [B, T, D]; positions, mask and read are the text's.
  """
  if soft is not None:
    rows = jnp.maximum(text.media_index, 0)[:, :, None]
    media = jnp.take_along_axis(soft.x.astype(embeds.dtype), rows, axis=1)
    embeds = jnp.where(text.media_index[:, :, None] >= 0, media, embeds)
  return Fused(embeds, text.positions, text.mask, text.read)


def memory(text: Text, embeds: jax.Array, soft: Soft | None) -> Fused:
  """Media for the decoder's cross-attention; the tokens stay as they are.

  Args:
    text: its `see` [B, T, 2 * R] says what each token sees of them.
    embeds: [B, T, D] token embeddings.
    soft: rows [B, S, D'], or None when the batch has no media.

  Returns:
    Fused with x = `embeds` and the rows as its memory, labelled with their items.
  """
  found = None if soft is None else Memory(soft.x, soft.item)
  return Fused(embeds, text.positions, text.mask, text.read, found, text.see)
