"""Contrast over given scores and matching of pairs, against float64 NumPy, with bad rows."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigvlm import types
from bigvlm.objectives import table

N = 6
WEIGHTS = np.ones((N, 2), np.float32)
WEIGHTS[[1, 4]] = 0
KEEP = np.flatnonzero(WEIGHTS[:, 0])


def _softmax(x):
  e = np.exp(x - x.max(-1, keepdims=True))
  return e / e.sum(-1, keepdims=True)


def scores(x, scale, smoothing):
  """(loss, gradient for the scores, for the scale) of all rows."""
  n = len(x)
  target = (1 - smoothing) * np.eye(n) + smoothing / n
  rows, cols = _softmax(scale * x), _softmax(scale * x.T).T
  loss = -(target * (np.log(rows) + np.log(cols))).sum() / (2 * n)
  g = (rows + cols - 2 * target) / (2 * n)
  return loss, scale * g, (g * x).sum()


def match(yes, no):
  """(loss, gradients for both) of all rows."""
  x = np.concatenate([yes[:, None], no], axis=1)
  wanted = np.zeros(x.shape)
  wanted[:, 0, 1] = wanted[:, 1:, 0] = 1
  p, count = _softmax(x), x.shape[0] * x.shape[1]
  g = (p - wanted) / count
  return -(wanted * np.log(p)).sum() / count, g[:, 0], g[:, 1:]


def _run(cfg, heads, weights):
  objective = table.make(cfg)

  def loss(heads):
    return objective(types.Outputs(heads=heads), types.Batch(None, {}, weights=weights))

  heads = {k: jnp.asarray(v, jnp.float32) for k, v in heads.items()}
  return jax.jit(jax.value_and_grad(loss, has_aux=True))(heads)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_scores_are_float64_numpys_and_bad_rows_count_nowhere(smoothing):
  x = np.random.default_rng(0).uniform(-1, 1, (N, N))
  bad = x.copy()
  bad[1], bad[:, 4] = np.nan, 1e30
  cfg = dict(kind="scores", label_smoothing=smoothing)
  (loss, metrics), grads = _run(cfg, dict(scores=bad, scale=9.0), WEIGHTS)
  mine = np.ix_(KEEP, KEEP)
  want, dx, dscale = scores(x[mine], 9.0, smoothing)
  np.testing.assert_allclose(loss, want, rtol=1e-6)
  np.testing.assert_allclose(grads["scale"], dscale, rtol=1e-5)
  np.testing.assert_allclose(np.asarray(grads["scores"])[mine], dx, atol=1e-6)
  rest = np.asarray(grads["scores"]).copy()
  rest[mine] = 0
  assert not rest.any()
  assert metrics["accuracy"] == ((x[mine].argmax(1) == np.arange(len(KEEP))).sum(), len(KEEP))


def test_match_is_float64_numpys_and_bad_rows_count_nowhere():
  rng = np.random.default_rng(1)
  yes, no = rng.normal(size=(N, 2)), rng.normal(size=(N, 2, 2))
  bad = yes.copy()
  bad[1] = np.nan
  (loss, metrics), grads = _run(dict(kind="match"), dict(match=bad, mismatch=no), WEIGHTS)
  want, dyes, dno = match(yes[KEEP], no[KEEP])
  np.testing.assert_allclose(loss, want, rtol=1e-6)
  for name, g in dict(match=dyes, mismatch=dno).items():
    found = np.asarray(grads[name])
    np.testing.assert_allclose(found[KEEP], g, atol=1e-6)
    assert not np.delete(found, KEEP, axis=0).any()
  right = (yes[KEEP, 1] > yes[KEEP, 0]).sum() + (no[KEEP, :, 0] > no[KEEP, :, 1]).sum()
  assert metrics["accuracy"] == (right, 3 * len(KEEP))


def test_where_nothing_else_can_be_drawn_the_pair_alone_counts():
  alone = WEIGHTS * (np.arange(N) == 2)[:, None]
  heads = dict(match=np.tile([0.0, 1.0], (N, 1)), mismatch=np.full((N, 2, 2), 7.0))
  (loss, metrics), _ = _run(dict(kind="match"), heads, alone)
  np.testing.assert_allclose(loss, np.log1p(np.exp(-1.0)), rtol=1e-6)
  assert metrics["loss"][1] == 1
  (loss, _), grads = _run(dict(kind="match"), heads, alone * 0)
  assert loss == 0 and not any(np.asarray(g).any() for g in grads.values())


def test_a_smoothing_that_is_no_share_is_refused():
  with pytest.raises(ValueError, match="label_smoothing=1"):
    table.make(dict(kind="scores", label_smoothing=1.0))
