"""Decoding: prefill and a `lax.while_loop` over one-token steps, in one program.

`decode` gives tokens and their log-probabilities, `generate` the tokens alone, `stream` a few
tokens at a time. Beam search is in `bigvlm.beam`.

Layer weights are cut apart before the program starts (`unstack`): a loop over
stacked weights would copy every layer's slice for every token.
"""

import functools
from collections.abc import Iterator
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from bigvlm import sampling as sampling_lib
from bigvlm.layers import dense
from bigvlm.sampling import GREEDY, Sampling
from bigvlm.types import Batch
from bigvlm.utils import jaxcache


def unstack(params: dict) -> dict:
  """Cuts every stacked group `g{n}` into `g{n}/{i}`, the form that decoding reads. Not under jit.

  Args:
    params: parameter tree with [repeats, ...] leaves under names g0, g1, ...

  Returns:
    The same tree with those leaves cut; all other leaves, and what is cut already, are those of
    `params`.
  """
  out = {}
  for name, sub in params.items():
    if not isinstance(sub, dict) or "0" in sub:
      out[name] = sub
    elif _group(name):
      repeats = jax.tree.leaves(sub)[0].shape[0]
      out[name] = {str(i): jax.tree.map(lambda x, i=i: _layer(x, i), sub) for i in range(repeats)}
    else:
      out[name] = unstack(sub)
  return out


def _group(name: str) -> bool:
  return name[:1] == "g" and name[1:].isdigit()


def _stacked(params: dict) -> bool:
  """Whether a group is there that `unstack` would cut."""
  subs = [(name, sub) for name, sub in params.items() if isinstance(sub, dict)]
  return any((_group(name) and "0" not in sub) or _stacked(sub) for name, sub in subs)


def _layer(x: jax.Array, i: int) -> jax.Array:
  """x[i]; on one CPU a view, for which nothing is compiled or copied."""
  devices = x.devices()
  if len(devices) > 1 or next(iter(devices)).platform != "cpu":
    return x[i]
  return jax.device_put(np.asarray(x)[i], *devices)


class Generated(NamedTuple):
  """Tokens int32 [B, n], and the log-probability float32 [B, n] of each (0 after a row's end)."""

  tokens: jax.Array
  logp: jax.Array


class State(NamedTuple):
  """What a step of decoding starts from; see `start`."""

  n: jax.Array  # int32: how many tokens there are.
  last: jax.Array  # int32 [B].
  done: jax.Array  # bool [B].
  out: Generated
  seen: jax.Array | None  # bool [B, V]: tokens of the row, when they are penalised.
  cache: Any


def ends(eos: int | tuple[int, ...]) -> tuple[int, ...]:
  """End tokens as a tuple."""
  return (eos,) if isinstance(eos, int) else tuple(eos)


def ended(tokens: jax.Array, eos: int | tuple[int, ...]) -> jax.Array:
  """bool [B]: which tokens [B] end their row."""
  return jnp.any(tokens[:, None] == jnp.asarray(ends(eos), jnp.int32), axis=1)


def prefill(
  module: nn.Module, params: dict, batch: Batch, new: int, copies: int = 1
) -> tuple[jax.Array, Any]:
  """Logits [B * copies, V] at the position that is read, and the cache of that many rows.

  The copies of a row lie side by side, and are made after the prefill.

  Raises:
    ValueError: copies of scanned layers (whose cache has the layers in front).
  """
  cache = module.init_cache(batch, new)
  out = module.apply({"params": params}, batch, cache=cache)
  logits, cache = out.logits[:, 0], out.cache
  if copies > 1:
    if "0" not in cache.layers["g0"]:
      raise ValueError("several samples or beams need parameters that `generate.unstack` cut apart")
    logits = jnp.repeat(logits, copies, axis=0)
    cache = jax.tree.map(lambda x: jnp.repeat(x, copies, axis=0) if x.ndim else x, cache)
  return logits, cache


def start(
  module, params, batch, rng, *, max_new_tokens, eos, sampling, pad, samples, seen=None
) -> State:
  """Prefill and the first token; the arguments are those of `decode`."""
  logits, cache = prefill(module, params, batch, max_new_tokens, samples)
  rows, vocab = logits.shape
  if sampling.repetition_penalty != 1.0 and seen is None:
    text = batch.text if batch.target is None else batch.target
    real = (text.mask.segment > 0) & (text.media_index < 0)
    marks = jnp.zeros((text.tokens.shape[0], vocab), bool)
    marks = marks.at[jnp.arange(len(marks))[:, None], text.tokens].max(real)
    seen = jnp.repeat(marks, samples, axis=0)
  first, logp = sampling_lib.choose(logits, sampling, jax.random.fold_in(rng, 0), seen)
  tokens = jnp.full((rows, max_new_tokens), pad, jnp.int32).at[:, 0].set(first)
  scores = jnp.zeros((rows, max_new_tokens), jnp.float32).at[:, 0].set(logp)
  return State(
    jnp.int32(1), first, ended(first, eos), Generated(tokens, scores), _mark(seen, first), cache
  )


_turned = jax.jit(dense.turned)
_TURNED = 1 << 30  # Bytes of the largest decoder of which `for_steps` makes a copy.


def for_steps(module: nn.Module, params: dict, rows: int) -> dict:
  """The parameters as many steps of `rows` rows read them fastest.

  On a CPU that is with turned kernels (`dense.turned`), for 2 to 16 rows all in float32 and for one
  all in bfloat16: a step takes two thirds to three quarters of the time. They are a copy, which a
  large decoder in float32 does not get, nor one whose layers are stacked. In bfloat16 it replaces a
  larger one, in float32, that XLA would make; a decoder with an output layer apart from its
  embeddings stays with that.
  """
  decoder = params["decoder"]
  leaves = jax.tree.leaves(decoder)
  if jax.default_backend() != "cpu" or _stacked(decoder):
    return params
  dtypes = {jnp.dtype(module.decoder.dtype), *(x.dtype for x in leaves)}
  small = sum(x.nbytes for x in leaves) <= _TURNED
  few = dtypes == {jnp.dtype(jnp.float32)} and 1 < rows <= 16 and small
  alone = dtypes == {jnp.dtype(jnp.bfloat16)} and rows == 1 and "head" not in decoder
  return params | {"decoder": _turned(decoder)} if few or alone else params


def _mark(seen: jax.Array | None, tokens: jax.Array) -> jax.Array | None:
  return None if seen is None else seen.at[jnp.arange(len(tokens)), tokens].set(True)


def run(module, params, state: State, rng, until, *, eos, sampling, pad) -> State:
  """Steps until there are `until` tokens (an int32 scalar) or every row has ended."""

  def unfinished(s: State):
    return (s.n < until) & ~jnp.all(s.done)

  def extend(s: State):
    weights, last = params, s.last
    if len(last) > 1 or dense.is_turned(params["decoder"]):
      # Else XLA on a CPU moves what it does to weights (casts, turns) out of the loop, and every
      # step reads those copies: faster only where one row reads kernels as they are.
      weights, last = jax.lax.optimization_barrier((params, last))
    logits, cache = module.apply({"params": weights}, last, s.cache, method="step")
    key = jax.random.fold_in(rng, s.n)
    new, logp = sampling_lib.choose(logits, sampling, key, s.seen, s.n)
    new, logp = jnp.where(s.done, pad, new), jnp.where(s.done, 0.0, logp)
    out = Generated(
      jax.lax.dynamic_update_slice(s.out.tokens, new[:, None], (0, s.n)),
      jax.lax.dynamic_update_slice(s.out.logp, logp[:, None], (0, s.n)),
    )
    done = s.done | ended(new, eos)
    return State(s.n + 1, new, done, out, _mark(s.seen, new), cache)

  return jax.lax.while_loop(unfinished, extend, state)


_STATIC = ("module", "max_new_tokens", "eos", "sampling", "pad", "samples")


@functools.partial(jax.jit, static_argnames=_STATIC)
def decode(
  module: nn.Module,
  params: dict,
  batch: Batch,
  rng: jax.Array,
  *,
  max_new_tokens: int,
  eos: int | tuple[int, ...],
  sampling: Sampling = GREEDY,
  pad: int | None = None,
  samples: int = 1,
  seen: jax.Array | None = None,
) -> Generated:
  """Generates until every row has ended or `max_new_tokens` are made.

  Args:
    module: a VLM.
    params: its parameters, after `unstack`.
    batch: prompts with read [B, 1] at the last prompt position; for an encoder-decoder with a
      target, what its decoder begins with, and that read.
    rng: key for sampling.
    max_new_tokens: most tokens a row gets.
    eos: id that ends a row, or several; none with ().
    sampling: how a token is chosen.
    pad: what a row that has ended goes on with; by default its (first) end token.
    samples: answers to every row, from one prefill; those of a row lie side by side.
    seen: bool [B * samples, V], tokens that a repetition penalty takes for used already; None =
      the real tokens of the row.

  Returns:
    `Generated` with [B * samples, max_new_tokens].
  """
  pad = (*ends(eos), 0)[0] if pad is None else pad
  state = start(
    module,
    params,
    batch,
    rng,
    max_new_tokens=max_new_tokens,
    eos=eos,
    sampling=sampling,
    pad=pad,
    samples=samples,
    seen=seen,
  )
  if max_new_tokens == 1:
    return state.out
  params = for_steps(module, params, len(state.last))
  return run(module, params, state, rng, max_new_tokens, eos=eos, sampling=sampling, pad=pad).out


def generate(
  module: nn.Module,
  params: dict,
  batch: Batch,
  rng: jax.Array,
  *,
  max_new_tokens: int,
  eos: int | tuple[int, ...],
  temperature: float = 0.0,
  pad: int | None = None,
) -> jax.Array:
  """The tokens int32 [B, max_new_tokens] of `decode`, greedy or at a temperature."""
  how = Sampling(temperature=temperature)
  return decode(
    module, params, batch, rng, max_new_tokens=max_new_tokens, eos=eos, sampling=how, pad=pad
  ).tokens


_run = jax.jit(run, static_argnames=("module", "eos", "sampling", "pad"))


@functools.cache
def _start(platform: str):
  options = jaxcache.known(jaxcache.SOON) if platform == "cpu" else None
  return jax.jit(start, static_argnames=_STATIC, compiler_options=options)


def stream(
  module: nn.Module,
  params: dict,
  batch: Batch,
  rng: jax.Array,
  *,
  max_new_tokens: int,
  eos: int | tuple[int, ...],
  sampling: Sampling = GREEDY,
  pad: int | None = None,
  every: int = 8,
  apart: dict | None = None,
) -> Iterator[Generated]:
  """The same tokens as `decode`, a few at a time and the first one soon.

  The prefill is a program of its own and takes the parameters as they are, so that a module that
  scans its layers compiles one of each kind for it.

  Args:
    module, batch, rng, max_new_tokens, eos, sampling, pad: as for `decode`.
    params: the parameters, not cut apart.
    every: how many tokens are made before there is news of them.
    apart: `unstack(params)`, where it is at hand.

  Yields:
    `Generated` of NumPy arrays [B, n] for n = 1, 1 + every, ...; the last holds them all. A caller
    that has seen enough just stops.
  """
  pad = (*ends(eos), 0)[0] if pad is None else pad
  how = dict(eos=eos, sampling=sampling, pad=pad)
  begin = _start(next(iter(jax.tree.leaves(params)[0].devices())).platform)
  state = begin(module, params, batch, rng, max_new_tokens=max_new_tokens, samples=1, **how)
  until = 1
  while True:
    yield Generated(*(np.asarray(x)[:, :until] for x in state.out))
    if until >= max_new_tokens or np.all(state.done):
      return
    if until == 1:
      apart = unstack(params) if apart is None else apart
      apart = for_steps(module, apart, len(state.last))
      state = state._replace(cache=state.cache.replace(layers=unstack(state.cache.layers)))
    until = min(until + every, max_new_tokens)
    state = _run(module, apart, state, rng, jnp.int32(until), **how)
