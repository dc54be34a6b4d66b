"""Preference losses of pairs: values and gradients against NumPy, metrics, sharding."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigvlm import types
from bigvlm.objectives import table
from bigvlm.parallel import mesh as mesh_lib

N, K, V = 8, 4, 17  # Pairs, positions, vocabulary.
MPO = dict(preference=0.8, quality=0.2, generation=1.0)
RUNNING = dict(chosen=(3.0, 10.0), rejected=(-2.0, 10.0))


@pytest.fixture(scope="module")
def data():
  """Logits and the reference's [2 N, K, V], labels, weights; pair 3 is of a bad record."""
  rng = np.random.default_rng(0)
  logits, reference = 2 * rng.normal(size=(2, 2 * N, K, V))
  labels = rng.integers(0, V, (2 * N, K)).astype(np.int32)
  weights = (np.arange(K) < rng.integers(1, K + 1, (2 * N, 1))).astype(np.float32)
  weights[6:8] = 0
  return logits, reference, labels, weights


def run(cfg, logits, reference, labels, weights, running=None):
  """((loss, metrics), gradient for the logits)."""
  objective = table.make(dict(kind="dpo", **cfg))

  def loss(logits):
    extra = {} if running is None else dict(running=jax.tree.map(jnp.float32, running))
    batch = types.Batch(None, {}, labels, weights, extra)
    batch = objective.refer(types.Outputs(reference), batch)
    return objective(types.Outputs(logits), batch)

  return jax.jit(jax.value_and_grad(loss, has_aux=True))(logits)


def expected(logits, reference, labels, weights, running, **cfg):
  """(loss, gradient, rewards [pairs, 2]) in float64, as the papers write them."""
  cfg = dict(beta=0.1, label_smoothing=0.0, preference=1.0, quality=0.0, generation=0.0) | cfg
  beta, s = cfg["beta"], cfg["label_smoothing"]

  def logp(x):
    p = np.exp(x) / np.exp(x).sum(-1, keepdims=True)
    return (weights * np.log(np.take_along_axis(p, labels[..., None], -1)[..., 0])).sum(-1), p

  (own, p), (other, _) = logp(logits), logp(reference)
  keep = np.flatnonzero(weights.reshape(-1, 2, K).any(-1).all(-1))
  r = (beta * (own - other)).reshape(-1, 2)[keep]
  length = weights.sum(-1).reshape(-1, 2)[keep]

  def sigmoid(x):
    return 1 / (1 + np.exp(-x))

  m, (c, j) = r[:, 0] - r[:, 1], r.T
  seen = [r.sum(), 2 * len(keep)]
  for total, count in (running or {}).values():
    seen = [seen[0] + total, seen[1] + count]
  d = seen[0] / seen[1]
  loss = cfg["preference"] * -((1 - s) * np.log(sigmoid(m)) + s * np.log(sigmoid(-m)))
  loss += cfg["quality"] * -(np.log(sigmoid(c - d)) + np.log(sigmoid(d - j)))
  loss += cfg["generation"] * -own.reshape(-1, 2)[keep, 0] / length[:, 0]
  # By the log-probability of each answer.
  slope = cfg["preference"] * -((1 - s) * sigmoid(-m) - s * sigmoid(m))
  by = beta * np.stack(
    [slope - cfg["quality"] * sigmoid(d - c), -slope + cfg["quality"] * sigmoid(j - d)], 1
  )
  by[:, 0] -= cfg["generation"] / length[:, 0]
  full = np.zeros((len(logits) // 2, 2))
  full[keep] = by / len(keep)
  one = np.eye(V)[labels]
  return loss.mean(), full.reshape(-1)[:, None, None] * weights[..., None] * (one - p), r


@pytest.mark.parametrize("cfg", [{}, dict(beta=0.5, label_smoothing=0.2), dict(beta=0.3, **MPO)])
@pytest.mark.parametrize("running", [None, RUNNING])
def test_matches_float64_numpy(data, cfg, running):
  logits, reference, labels, weights = data
  arrays = jnp.float32(logits), jnp.float32(reference), labels, weights
  (loss, metrics), grad = run(cfg, *arrays, running)
  want, want_grad, rewards = expected(logits, reference, labels, weights, running, **cfg)
  np.testing.assert_allclose(loss, want, rtol=2e-6)
  np.testing.assert_allclose(grad, want_grad, atol=2e-7)
  means = dict(chosen=rewards[:, 0].mean(), rejected=rewards[:, 1].mean(), loss=want)
  means |= dict(margin=means["chosen"] - means["rejected"])
  means |= dict(accuracy=(rewards[:, 0] > rewards[:, 1]).mean())
  assert metrics.keys() == means.keys()
  for name, (value, count) in metrics.items():
    assert count == N - 1
    np.testing.assert_allclose(value / count, means[name], rtol=2e-5, atol=1e-6, err_msg=name)


def test_two_answers_alike_give_exactly_log_2(data):
  """And what the one gradient raises the other lowers."""
  twice = (np.repeat(x[0:4:2], 2, axis=0) for x in data)
  logits, reference, labels, weights = (x.astype(np.float32) for x in twice)
  (loss, metrics), grad = run({}, logits, reference, labels.astype(np.int32), weights)
  assert loss == np.float32(math.log(2)) and metrics["margin"][0] == 0
  np.testing.assert_array_equal(grad[0::2], -grad[1::2])
  assert np.abs(grad).max() > 0


def test_what_an_unweighted_position_holds_does_not_matter(data):
  logits, reference, labels, weights = data
  dirty = (jnp.float32(np.where(weights[..., None] > 0, x, np.nan)) for x in (logits, reference))
  (loss, _), grad = run(MPO, *dirty, labels, weights)
  want, want_grad, _ = expected(logits, reference, labels, weights, None, **MPO)
  np.testing.assert_allclose(loss, want, rtol=2e-6)
  np.testing.assert_allclose(grad, want_grad, atol=2e-7)


def test_batch_without_a_pair_gives_zero(data):
  logits, reference, labels, weights = data
  (loss, _), grad = run(MPO, jnp.float32(logits), jnp.float32(reference), labels, 0 * weights)
  assert loss == 0 and not np.asarray(grad).any()


def test_sharded_over_eight_devices(data):
  mesh = mesh_lib.make(dict(data=4, fsdp=2))
  logits, reference, labels, weights = data
  arrays = mesh_lib.put_global((np.float32(logits), np.float32(reference), labels, weights), mesh)
  (loss, _), grad = run(MPO, *arrays)
  want, want_grad, _ = expected(*data, None, **MPO)
  np.testing.assert_allclose(loss, want, rtol=2e-6)
  np.testing.assert_allclose(grad, want_grad, atol=2e-7)


@pytest.mark.parametrize(
  ("cfg", "words"),
  [
    (dict(beta=0.0), "objective.beta=0.0 is not above 0"),
    (dict(label_smoothing=0.5), r"label_smoothing=0.5 is not in \[0, 0.5\)"),
    (dict(quality=-0.2), "objective.quality=-0.2 is negative"),
    (dict(preference=0.0), "are all 0"),
    (dict(betta=0.1), "did you mean 'beta'"),
  ],
)
def test_bad_fields_are_named(cfg, words):
  with pytest.raises(ValueError, match=words):
    table.make(dict(kind="dpo", **cfg))


def test_it_is_no_part_of_a_sum():
  parts = dict(a=dict(kind="prefix_lm"), b=dict(kind="dpo", weight=0.5))
  with pytest.raises(ValueError, match=r"objective.parts.b: 'dpo' is for batches of pairs"):
    table.make(dict(kind="total", parts=parts))
