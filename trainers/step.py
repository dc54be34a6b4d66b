"""The train step: one pure function of (state, batch), the same for every objective."""

from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from bigvlm import types
from bigvlm.processing import pairs
from bigvlm.trainers import optim
from bigvlm.trainers import state as state_lib

PyTree = Any
POLICIES = ("skip", "stop", "rollback")


def as_batch(objective: Callable, arrays: PyTree) -> types.Batch:
  """The batch of a processor's flat arrays; those of pairs, [B, 2, ...], become 2 B rows."""
  return types.to_batch(pairs.apart(arrays) if getattr(objective, "pairs", False) else arrays)


def make_loss(module: Any, objective: Callable) -> Callable:
  """Returns `(params, frozen, arrays, key) -> (loss f32 [], {name: f32 [2]})`.

  `arrays` are the flat arrays of a processor, [B, ...]; the metrics are the
  objective's (sum, count) pairs. An objective of pairs wants `reference`, parameters in place of
  `params` whose answer it compares with (without dropout); one with `running`, its sums.
  """

  def loss_fn(params, frozen, arrays, key, *, reference=None, running=None):
    batch = as_batch(objective, arrays)
    variables = {"params": state_lib.merge(params, frozen)}
    out = module.apply(variables, batch, train=True, rngs={"dropout": key})
    if reference:
      before = {"params": state_lib.merge(reference, frozen)}
      batch = objective.refer(module.apply(before, batch, train=False), batch)
    if running:
      batch = batch.replace(extra={**batch.extra, "running": running})
    loss, metrics = objective(out, batch)
    metrics = {name: jnp.stack(pair).astype(jnp.float32) for name, pair in metrics.items()}
    if "loss" not in metrics:
      metrics["loss"] = jnp.stack([loss, jnp.ones_like(loss)])
    return loss, metrics

  return loss_fn


def make_grads(loss_fn: Callable, accumulate: int) -> Callable:
  """Returns `(params, frozen, arrays, key, **beside) -> (loss, metrics, grads)`.

  With `accumulate` = A > 1 row r of the batch belongs to micro-batch r % A (no row
  leaves its device), and each micro-batch's gradient is weighted by the count of its
  `loss` metric (supervised tokens, or examples). A loss that is a sum over rows
  divided by that count thus has exactly the gradient of the big batch, up to the
  rounding of the sums. A contrastive loss sees its micro-batch only, as everywhere
  without gradient caching; dropout draws other masks than the big batch would.
  """
  value_and_grad = jax.value_and_grad(loss_fn, has_aux=True)

  def grads_of(params, frozen, arrays, key, **beside):
    if accumulate == 1:
      (loss, metrics), grads = value_and_grad(params, frozen, arrays, key, **beside)
      return loss, metrics, grads
    micro = jax.tree.map(
      lambda x: jnp.moveaxis(x.reshape(-1, accumulate, *x.shape[1:]), 1, 0), arrays
    )

    def body(total, xs):
      index, rows = xs
      part = jax.random.fold_in(key, index)
      (loss, metrics), grads = value_and_grad(params, frozen, rows, part, **beside)
      weight = metrics["loss"][1]
      total = jax.tree.map(lambda t, g: t + weight * g.astype(jnp.float32), total, grads)
      return total, (loss, metrics)

    zeros = jax.tree.map(lambda p: jnp.zeros_like(p, jnp.float32), params)
    total, (losses, metrics) = jax.lax.scan(body, zeros, (jnp.arange(accumulate), micro))
    weights = metrics["loss"][:, 1]
    scale = 1.0 / jnp.maximum(jnp.sum(weights), 1e-30)
    grads = jax.tree.map(lambda t: t * scale, total)
    metrics = {name: jnp.sum(pairs, axis=0) for name, pairs in metrics.items()}
    return jnp.sum(losses * weights) * scale, metrics, grads

  return grads_of


def reported(metrics: Iterable[str]) -> list[str]:
  """Names that a step reports whose objective gives these metrics."""
  return sorted({"loss", *metrics}) + ["bad_records", "grad_norm"]


def make_train_step(
  module: Any,
  objective: Callable,
  tx: optax.GradientTransformationExtraArgs,
  *,
  lr: Callable,
  accumulate: int = 1,
  ema: float = 0.0,
  policy: str = "skip",
  max_in_a_row: int = 10,
  log_every: int = 50,
) -> Callable:
  """Returns `(state, arrays) -> (state, out)`, to be jitted with `state` donated.

  A step whose loss or gradient norm is not finite changes neither parameters nor
  optimiser nor average, bit for bit. Policy `skip` counts it and goes on, until
  `max_in_a_row` follow each other; `stop` and `rollback` set `halted` at once. A
  halted state passes through later steps unchanged, so that the host may learn of
  it some steps later without harm.

  Args:
    module: the model.
    objective: `(Outputs, Batch) -> (loss, metrics)`.
    tx: from `optim.make`.
    lr: `step -> f32 []`, for the log only.
    accumulate: micro-batches a step.
    ema: decay of the average, 0 = none.
    policy: one of `POLICIES`.
    max_in_a_row: non-finite steps in a row that `skip` lets pass.
    log_every: metrics are summed from one multiple of it to the next.

  `arrays` are the processor's flat arrays [B, ...] plus `vote` int32 [B], the wish of
  the process that gave the row. `out`: `metrics` (sums of the log interval so far),
  `lr`, and `flags` int32 [4]: this step was not finite, the state is halted, steps
  skipped so far, the largest vote.
  """
  grads_of = make_grads(make_loss(module, objective), accumulate)

  def train_step(state, arrays):
    arrays = dict(arrays)
    vote = jnp.max(arrays.pop("vote"))
    next_rng, key = jax.random.split(jax.random.wrap_key_data(state.rng))
    beside = dict(reference=state.reference, running=state.running)
    loss, metrics, grads = grads_of(state.params, state.frozen, arrays, key, **beside)
    norm = optim.global_norm(grads)
    finite = jnp.isfinite(loss) & jnp.isfinite(norm)
    live = ~state.halted
    good, bad = live & finite, live & ~finite
    in_a_row = jnp.where(live, jnp.where(finite, 0, state.in_a_row + 1), state.in_a_row)
    halt = bad & (in_a_row >= max_in_a_row) if policy == "skip" else bad
    moved = live & ~halt  # This step is behind us, be it good or skipped.

    updates, opt = tx.update(grads, state.opt, state.params, step=state.step, norm=norm)

    def keep(new, old):
      return jnp.where(good, new.astype(old.dtype), old)

    params = jax.tree.map(lambda p, u: keep(p.astype(jnp.float32) + u, p), state.params, updates)
    average = state.ema
    if ema:

      def blend(e, p):
        return keep(ema * e + (1.0 - ema) * p.astype(jnp.float32), e)

      average = jax.tree.map(blend, state.ema, params)

    metrics["grad_norm"] = jnp.stack([norm, jnp.ones_like(norm)])
    rows = arrays["bad"].astype(jnp.float32)
    metrics["bad_records"] = jnp.stack([jnp.sum(rows), jnp.float32(rows.size)])
    fresh = state.step % log_every == 0
    sums = {
      name: jnp.where(fresh, 0.0, state.metrics[name]) + jnp.where(good, pair, 0.0)
      for name, pair in metrics.items()
    }
    new = state.replace(
      step=state.step + moved,
      params=params,
      opt=jax.tree.map(keep, opt, state.opt),
      ema=average,
      rng=jnp.where(moved, jax.random.key_data(next_rng), state.rng),
      metrics={name: jnp.where(moved, x, state.metrics[name]) for name, x in sums.items()},
      skipped=state.skipped + (bad & ~halt),
      in_a_row=in_a_row,
      halted=state.halted | halt,
      running={name: keep(x + metrics[name], x) for name, x in state.running.items()},
    )
    flags = jnp.stack([bad.astype(jnp.int32), new.halted.astype(jnp.int32), new.skipped, vote])
    return new, dict(metrics=sums, lr=lr(state.step), flags=flags)

  return train_step
