"""Beam search, as PaliGemma's evaluation has it: the finished hypothesis of largest sum wins.

Reference: google-research/big_vision, `evaluators/proj/paligemma` and its decoding: the score is
the summed log-probability without a length penalty, and the search stops when no live
hypothesis can still win. A length penalty (arXiv 1609.08144, dividing by length ** penalty) is
there when asked for.
"""

import functools
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from bigvlm import generate
from bigvlm.types import Batch

_NEVER = -1e30  # The score of what is no hypothesis; finite, so that sums stay finite.


class Beams(NamedTuple):
  """The best hypothesis of every row: tokens int32 [B, n], score float32 [B], finished bool [B]."""

  tokens: jax.Array
  score: jax.Array
  finished: jax.Array


@functools.partial(
  jax.jit, static_argnames=("module", "max_new_tokens", "eos", "beams", "pad", "length_penalty")
)
def search(
  module: nn.Module,
  params: dict,
  batch: Batch,
  *,
  max_new_tokens: int,
  eos: int | tuple[int, ...],
  beams: int,
  pad: int | None = None,
  length_penalty: float = 0.0,
) -> Beams:
  """The most probable answer that a search with `beams` live hypotheses finds.

  Args:
    module, params, batch, max_new_tokens, eos, pad: as for `generate.decode`.
    beams: how many hypotheses live on at every step.
    length_penalty: p > 0 divides a hypothesis's score by its length ** p.

  Returns:
    `Beams`; where none finished, the best of those that live.
  """
  pad = (*generate.ends(eos), 0)[0] if pad is None else pad
  logits, cache = generate.prefill(module, params, batch, max_new_tokens, beams)
  rows, vocab, last = batch.text.tokens.shape[0], logits.shape[-1], max_new_tokens
  stop = jnp.zeros(vocab, bool).at[jnp.asarray(generate.ends(eos), jnp.int32)].set(True)

  def worth(score, length):  # A finished or final hypothesis's score.
    return score / jnp.float32(length) ** length_penalty if length_penalty else score

  def advance(n, logits, score, tokens, best):
    """Scores [B, K], tokens [B, K, last] and the best finished, one token longer."""
    logp = jax.nn.log_softmax(logits.astype(jnp.float32)).reshape(rows, beams, vocab)
    total = score[:, :, None] + logp
    done = jnp.where(stop, total, _NEVER).reshape(rows, -1)
    at = jnp.argmax(done, axis=1)
    found = worth(jnp.take_along_axis(done, at[:, None], axis=1)[:, 0], n + 1)
    won = jnp.take_along_axis(tokens, (at // vocab)[:, None, None], axis=1)[:, 0]
    won = won.at[:, n].set((at % vocab).astype(jnp.int32))
    better = (found > best.score) & (found > _NEVER / 2)
    best = Beams(
      jnp.where(better[:, None], won, best.tokens),
      jnp.where(better, found, best.score),
      best.finished | better,
    )
    score, at = jax.lax.top_k(jnp.where(stop, _NEVER, total).reshape(rows, -1), beams)
    parent, new = at // vocab, (at % vocab).astype(jnp.int32)
    tokens = jnp.take_along_axis(tokens, parent[:, :, None], axis=1).at[:, :, n].set(new)
    return score, tokens, best, parent, new

  def unfinished(state):
    n, score, _, best, _, _ = state
    # A live hypothesis only loses by going on, unless its length is divided out.
    hope = worth(score[:, 0], last) if length_penalty else score[:, 0]
    return (n < last) & ~jnp.all(best.finished & (best.score >= hope))

  def extend(state):
    n, score, tokens, best, new, cache = state
    logits, cache = module.apply({"params": params}, new.reshape(-1), cache, method="step")
    score, tokens, best, parent, new = advance(n, logits, score, tokens, best)
    rows_of = (jnp.arange(rows)[:, None] * beams + parent).reshape(-1)
    cache = jax.tree.map(lambda x: x[rows_of] if x.ndim else x, cache)
    return n + 1, score, tokens, best, new, cache

  params = generate.for_steps(module, params, rows * beams)
  # One hypothesis at first: equal ones would fill the beam.
  score = jnp.full((rows, beams), _NEVER).at[:, 0].set(0.0)
  tokens = jnp.full((rows, beams, last), pad, jnp.int32)
  best = Beams(tokens[:, 0], jnp.full(rows, _NEVER), jnp.zeros(rows, bool))
  score, tokens, best, parent, new = advance(0, logits, score, tokens, best)
  state = (jnp.int32(1), score, tokens, best, new, cache)
  _, score, tokens, best, _, _ = jax.lax.while_loop(unfinished, extend, state)
  live = worth(score[:, 0], last)
  return Beams(
    jnp.where(best.finished[:, None], best.tokens, tokens[:, 0]),
    jnp.where(best.finished, best.score, live),
    best.finished,
  )
