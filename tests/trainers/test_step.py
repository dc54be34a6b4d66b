"""The train step on a small model: what moves, what must not, and what is counted."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigvlm.configs import common
from bigvlm.objectives import lm
from bigvlm.trainers import optim
from bigvlm.trainers import state as state_lib
from bigvlm.trainers import step as step_lib
from bigvlm.types import Outputs
from bigvlm.utils import tree as tree_lib

ROWS, READ, VOCAB = 8, 3, 5


class Toy(nn.Module):
  """x [B, 4] -> logits [B, READ, VOCAB] through two layers; `rate` of dropout between them."""

  rate: float = 0.0

  @nn.compact
  def __call__(self, batch, *, train=False):
    x = nn.tanh(nn.Dense(6, name="first")(batch.extra["x"]))
    x = nn.Dropout(self.rate, deterministic=not train)(x)
    logits = nn.Dense(READ * VOCAB, name="second")(x)
    return Outputs(logits=logits.reshape(-1, READ, VOCAB))


def arrays(seed=0, **over):
  rng = np.random.default_rng(seed)
  out = dict(
    x=rng.normal(size=(ROWS, 4)).astype(np.float32),
    labels=rng.integers(0, VOCAB, (ROWS, READ)).astype(np.int32),
    weights=(rng.random((ROWS, READ)) < 0.6).astype(np.float32),
    bad=np.zeros(ROWS, np.int32),
    vote=np.zeros(ROWS, np.int32),
  )
  return {**out, **over}


def setup(train=(".*",), rate=0.0, policy="skip", max_in_a_row=3, log_every=4, **fields):
  module, objective = Toy(rate), lm.PrefixLM(normalize="token")
  cfg = common.stage(
    **{"schedule": dict(kind="constant", warmup=0.0), "lr": 0.1, "train": train, **fields}
  ).to_dict()
  batch = {k: v for k, v in arrays().items() if k != "vote"}
  from bigvlm import types

  batch = types.to_batch(batch)
  out, variables = module.init_with_output(jax.random.key(0), batch)
  params = variables["params"]
  trainable, _ = state_lib.split(params, train, "train")
  tx = optim.make(cfg, trainable, 20)
  reported = step_lib.reported(objective(out, batch)[1])
  state = state_lib.create(
    params, train, tx, jax.random.key_data(jax.random.key(1)), reported, cfg["ema"] > 0
  )
  step = step_lib.make_train_step(
    module,
    objective,
    tx,
    lr=lambda t: jnp.float32(0.1),
    accumulate=cfg["accumulate"],
    ema=cfg["ema"],
    policy=policy,
    max_in_a_row=max_in_a_row,
    log_every=log_every,
  )
  return state, jax.jit(step)


def same(a, b):
  a, b = tree_lib.flatten(a), tree_lib.flatten(b)
  assert a.keys() == b.keys()
  return all(np.array_equal(a[k], b[k], equal_nan=True) for k in a)


def nan(k=2):
  x = arrays()["x"]
  x[k] = np.nan
  return arrays(x=x)


def test_frozen_parameters_stay_bitwise_and_have_no_state():
  """With weight decay over everything: what does not train is not touched by it."""
  state, step = setup(train=("second/.*",), weight_decay=((".*", 0.1),))
  names = tree_lib.names(state.opt)
  assert any("second" in n for n in names) and not any("first" in n for n in names)
  start = state
  for seed in range(3):
    state, _ = step(state, arrays(seed))
  assert same(state.frozen, start.frozen)
  moved = [
    not np.array_equal(a, b)
    for a, b in zip(*map(jax.tree.leaves, (state.params, start.params)), strict=True)
  ]
  assert all(moved)


@pytest.mark.parametrize("accumulate", [2, 4])
def test_accumulation_is_the_big_batch(accumulate):
  """Also when micro-batches have unequal numbers of supervised tokens."""
  weights = arrays()["weights"]
  weights[::2] = 0
  weights[0] = 1
  data = arrays(weights=weights)
  one, step = setup(optimizer=dict(kind="sgd"))
  many, micro = setup(optimizer=dict(kind="sgd"), accumulate=accumulate)
  one, _ = step(one, data)
  many, _ = micro(many, data)
  for a, b in zip(jax.tree.leaves(one.params), jax.tree.leaves(many.params), strict=True):
    np.testing.assert_allclose(a, b, atol=2e-7)
  np.testing.assert_allclose(one.metrics["loss"], many.metrics["loss"], rtol=1e-5)
  np.testing.assert_allclose(one.metrics["grad_norm"], many.metrics["grad_norm"], rtol=1e-5)


def test_a_micro_batch_without_a_target_does_not_matter():
  weights = arrays()["weights"]
  weights[1::2] = 0
  one, step = setup()
  many, micro = setup(accumulate=2)
  one, _ = step(one, arrays(weights=weights))
  many, _ = micro(many, arrays(weights=weights))
  for a, b in zip(jax.tree.leaves(one.params), jax.tree.leaves(many.params), strict=True):
    np.testing.assert_allclose(a, b, atol=1e-6)


def test_a_bad_step_changes_nothing_and_is_counted():
  state, step = setup(ema=0.9, weight_decay=((".*", 0.1),))
  state, _ = step(state, arrays())
  after, out = step(state, nan())
  for part in ("params", "opt", "ema", "frozen"):
    assert same(getattr(after, part), getattr(state, part)), part
  assert np.asarray(out["flags"]).tolist() == [1, 0, 1, 0]
  assert (int(after.step), int(after.skipped), int(after.in_a_row)) == (2, 1, 1)
  good, out = step(after, arrays(1))
  assert int(good.in_a_row) == 0 and int(good.skipped) == 1
  assert not same(good.params, after.params)
  assert all(np.isfinite(x).all() for x in jax.tree.leaves(good))


def test_bad_steps_in_a_row_halt_and_a_halted_state_passes_unchanged():
  state, step = setup(max_in_a_row=2)
  state, _ = step(state, nan())
  state, out = step(state, nan())
  assert np.asarray(out["flags"]).tolist()[:2] == [1, 1]
  assert int(state.step) == 1  # The step that halted is not behind us.
  later, out = step(state, arrays())
  assert np.asarray(out["flags"]).tolist()[:2] == [0, 1]
  assert same(later, state)


@pytest.mark.parametrize("policy", ["stop", "rollback"])
def test_other_policies_halt_at_once(policy):
  state, step = setup(policy=policy)
  after, out = step(state, nan())
  assert np.asarray(out["flags"]).tolist()[:2] == [1, 1]
  assert same(after.params, state.params) and int(after.step) == 0


def test_the_average_follows_by_its_decay():
  state, step = setup(ema=0.75)
  after, _ = step(state, arrays())
  want = jax.tree.map(lambda e, p: 0.75 * e + 0.25 * p, state.ema, after.params)
  for a, b in zip(jax.tree.leaves(after.ema), jax.tree.leaves(want), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-6)


def test_every_step_draws_a_new_key():
  state, step = setup(rate=0.5, lr=0.0)
  losses = []
  for _ in range(3):
    before = state.metrics["loss"][0]
    state, out = step(state, arrays())
    losses.append(float(out["metrics"]["loss"][0] - before))
  assert len(set(losses)) == 3


def test_metrics_are_sums_over_the_log_interval():
  state, step = setup(log_every=2)
  counts = []
  for seed in range(4):
    state, out = step(state, arrays(seed))
    counts.append(float(out["metrics"]["grad_norm"][1]))
  assert counts == [1, 2, 1, 2]
  total = sum(arrays(s)["weights"].sum() for s in (2, 3))
  assert float(out["metrics"]["loss"][1]) == total


def test_votes_and_bad_rows_are_seen():
  state, step = setup()
  vote, bad = np.zeros(ROWS, np.int32), np.zeros(ROWS, np.int32)
  vote[3], bad[:2] = 1, 1
  _, out = step(state, arrays(vote=vote, bad=bad))
  assert np.asarray(out["flags"]).tolist() == [0, 0, 0, 1]
  assert np.asarray(out["metrics"]["bad_records"]).tolist() == [2, ROWS]


def test_the_step_moves_nothing_between_host_and_device():
  state, step = setup(ema=0.9)
  data = jax.device_put(arrays())
  state, _ = step(state, data)
  with jax.transfer_guard("disallow"):
    state, _ = step(state, data)
  assert int(state.step) == 2


def test_nothing_to_train_is_an_error():
  with pytest.raises(ValueError, match="train: the pattern 'third/.*' matches no parameter"):
    setup(train=("third/.*",))
  with pytest.raises(ValueError, match="train is empty"):
    setup(train=())
