"""Decoding: prefill and a `lax.while_loop` over one-token steps, in one program.

Layer weights are cut apart before the program starts (`unstack`): a loop over
stacked weights would copy every layer's slice for every token.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from bigvlm.types import Batch


def unstack(params: dict) -> dict:
  """Cuts every stacked group `g{n}` into `g{n}/{i}`, the form that decoding reads. Not under jit.

  Args:
    params: parameter tree with [repeats, ...] leaves under names g0, g1, ...

  Returns:
    The same tree with those leaves cut; all other leaves are shared with `params`.
  """
  out = {}
  for name, sub in params.items():
    if not isinstance(sub, dict):
      out[name] = sub
    elif name[:1] == "g" and name[1:].isdigit():
      repeats = jax.tree.leaves(sub)[0].shape[0]
      out[name] = {str(i): jax.tree.map(lambda x, i=i: x[i], sub) for i in range(repeats)}
    else:
      out[name] = unstack(sub)
  return out


def choose(logits: jax.Array, temperature: float, rng: jax.Array) -> jax.Array:
  """Next token int32 [B] of logits [B, V]: the largest at temperature 0, else a sample."""
  if temperature == 0.0:
    return jnp.argmax(logits, axis=-1).astype(jnp.int32)
  return jax.random.categorical(rng, logits / temperature, axis=-1).astype(jnp.int32)


@functools.partial(jax.jit, static_argnames=("module", "max_new_tokens", "eos", "temperature"))
def generate(
  module: nn.Module,
  params: dict,
  batch: Batch,
  rng: jax.Array,
  *,
  max_new_tokens: int,
  eos: int,
  temperature: float = 0.0,
) -> jax.Array:
  """Generates until every row has ended or `max_new_tokens` are made.

  Args:
    module: a VLM whose layers run as "loop".
    params: its parameters, after `unstack`.
    batch: prompts with read [B, 1] at the last prompt position.
    rng: key for sampling.
    max_new_tokens: most tokens a row gets.
    eos: id that ends a row.
    temperature: 0 = greedy.

  Returns:
    int32 [B, max_new_tokens]; a row that has ended goes on with `eos`.
  """
  rows, length = batch.text.tokens.shape
  cache = module.decoder.init_cache(rows, length + max_new_tokens)
  variables = {"params": params}
  out = module.apply(variables, batch, cache=cache)
  first = choose(out.logits[:, 0], temperature, jax.random.fold_in(rng, 0))
  tokens = jnp.full((rows, max_new_tokens), eos, jnp.int32).at[:, 0].set(first)

  def unfinished(state):
    n, last, _, _ = state
    return (n < max_new_tokens) & jnp.any(last != eos)

  def extend(state):
    n, last, tokens, cache = state
    logits, cache = module.apply(variables, last, cache, method="step")
    new = choose(logits, temperature, jax.random.fold_in(rng, n))
    new = jnp.where(last == eos, eos, new)
    tokens = jax.lax.dynamic_update_slice(tokens, new[:, None], (0, n))
    return n + 1, new, tokens, cache

  state = (jnp.int32(1), first, tokens, out.cache)
  return jax.lax.while_loop(unfinished, extend, state)[2]
