"""Prefix-LM cross entropy: values and gradients against NumPy, metrics, sharding."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigvlm import types
from bigvlm.objectives import table
from bigvlm.parallel import mesh as mesh_lib

B, K, V = 8, 5, 33


@pytest.fixture(scope="module")
def data():
  rng = np.random.default_rng(0)
  logits = 3 * rng.normal(size=(B, K, V))
  labels = rng.integers(0, V, (B, K)).astype(np.int32)
  weights = (np.arange(K) < rng.integers(1, K + 1, (B, 1))).astype(np.float32)
  weights[2] = 0
  weights[5] *= 0.5
  return logits, labels, weights


def run(cfg, logits, labels, weights):
  """((loss, metrics), gradient for the logits)."""
  objective = table.make(dict(kind="prefix_lm", **cfg))

  def loss(logits):
    return objective(types.Outputs(logits), types.Batch(None, {}, labels, weights))

  return jax.jit(jax.value_and_grad(loss, has_aux=True))(logits)


@pytest.mark.parametrize("normalize", ["example", "token"])
@pytest.mark.parametrize("smoothing,z_loss", [(0.0, 0.0), (0.3, 0.0), (0.0, 1e-2), (0.1, 1e-3)])
def test_matches_float64_numpy(references, data, normalize, smoothing, z_loss):
  cfg = dict(label_smoothing=smoothing, z_loss=z_loss, normalize=normalize)
  (loss, _), grad = run(cfg, jnp.float32(data[0]), *data[1:])
  want, want_grad, _ = references.lm(*data, smoothing, z_loss, normalize)
  np.testing.assert_allclose(loss, want, rtol=2e-6)
  np.testing.assert_allclose(grad, want_grad, atol=2e-7)


def test_metrics_are_over_weighted_positions(references, data):
  logits, labels, weights = data
  (value_of_loss, metrics), _ = run(dict(label_smoothing=0.2), jnp.float32(logits), labels, weights)
  nll = references.lm(*data, 0, 0, "token")[2]
  total = weights.sum()
  mean = (weights * nll).sum() / total
  hits = (weights * (logits.argmax(-1) == labels)).sum()
  want = dict(nll=mean, accuracy=hits / total, perplexity=np.exp(mean))
  loss, rows = metrics.pop("loss")
  assert rows == (weights.sum(-1) > 0).sum()  # What the loss is a mean over.
  np.testing.assert_allclose(loss / rows, value_of_loss, rtol=1e-6)
  assert set(metrics) == set(want)
  for name, (value, count) in metrics.items():
    assert count == total
    np.testing.assert_allclose(value / count, want[name], rtol=1e-5, err_msg=name)


@pytest.mark.parametrize("normalize", ["example", "token"])
def test_what_an_unweighted_position_holds_does_not_matter(references, data, normalize):
  logits, labels, weights = data
  cfg = dict(normalize=normalize, label_smoothing=0.1, z_loss=1e-3)
  dirty = np.where(weights[..., None] > 0, logits, np.nan)
  (loss, metrics), grad = run(cfg, jnp.float32(dirty), labels, weights)
  want, want_grad, _ = references.lm(*data, 0.1, 1e-3, normalize)
  np.testing.assert_allclose(loss, want, rtol=2e-6)
  np.testing.assert_allclose(grad, want_grad, atol=2e-7)
  assert all(np.isfinite(v[0]) for v in metrics.values())


@pytest.mark.parametrize("normalize", ["example", "token"])
def test_batch_without_weight_gives_zero(data, normalize):
  (loss, _), grad = run(
    dict(normalize=normalize), jnp.float32(data[0]), data[1], np.zeros((B, K), np.float32)
  )
  assert loss == 0 and not np.asarray(grad).any()


def test_bfloat16_logits_are_computed_in_float32(references, data):
  logits = jnp.asarray(data[0], jnp.bfloat16)
  exact = np.asarray(logits).astype(np.float64)
  (loss, _), grad = run({}, logits, *data[1:])
  want, want_grad, _ = references.lm(exact, *data[1:], 0, 0, "example")
  assert loss.dtype == jnp.float32 and grad.dtype == jnp.bfloat16
  np.testing.assert_allclose(loss, want, rtol=2e-6)
  np.testing.assert_allclose(np.asarray(grad, np.float64), want_grad, rtol=5e-3, atol=1e-8)


def test_large_logits_stay_finite(data):
  (loss, _), grad = run({}, jnp.float32(1e4 * data[0]), *data[1:])
  assert np.isfinite(loss) and np.isfinite(grad).all()


@pytest.mark.parametrize("normalize", ["example", "token"])
def test_sharded_over_eight_devices(references, data, normalize):
  mesh = mesh_lib.make(dict(data=4, fsdp=2))
  arrays = mesh_lib.put_global((np.float32(data[0]), *data[1:]), mesh)
  cfg = dict(normalize=normalize, label_smoothing=0.1)
  (loss, _), grad = run(cfg, *arrays)
  want, want_grad, _ = references.lm(*data, 0.1, 0, normalize)
  np.testing.assert_allclose(loss, want, rtol=2e-6)
  np.testing.assert_allclose(grad, want_grad, atol=2e-7)
