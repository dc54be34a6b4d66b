"""Objectives from configs: weighted sums, and what a misspelt one is told."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from bigvlm import types
from bigvlm.objectives import table


def test_total_is_the_weighted_sum_of_its_parts():
  rng = np.random.default_rng(0)
  out = types.Outputs(
    logits=jnp.float32(rng.normal(size=(4, 3, 7))),
    heads=dict(image=jnp.eye(4, 8), text=jnp.eye(4, 8), scale=jnp.float32(5), bias=jnp.float32(-1)),
  )
  batch = types.Batch(None, {}, jnp.ones((4, 3), jnp.int32), jnp.ones((4, 3)))
  lm, pairs = dict(kind="prefix_lm", label_smoothing=0.1), dict(kind="sigmoid", chunk=2)
  cfg = ConfigDict(dict(kind="total", parts=dict(lm=lm, pairs=dict(weight=0.5, **pairs))))
  loss, metrics = jax.jit(table.make(cfg))(out, batch)
  one, two = (table.make(c)(out, batch)[0] for c in (lm, pairs))
  np.testing.assert_allclose(loss, one + 0.5 * two, rtol=1e-6)
  np.testing.assert_allclose(metrics["pairs/loss"][0] / 4, two, rtol=1e-6)
  assert metrics["pairs/accuracy"] == (4, 4)
  assert "lm/nll" in metrics


@pytest.mark.parametrize(
  "cfg,said",
  [
    (dict(kind="sigmiod"), "did you mean 'sigmoid'"),
    (dict(kind="prefix_lm", label_smothing=0.1), "did you mean 'label_smoothing'"),
    (dict(kind="prefix_lm", normalize="tokens"), "did you mean 'token'"),
    (dict(kind="prefix_lm", label_smoothing=1.5), "label_smoothing=1.5"),
    (dict(chunk=3), "objective says no kind"),
    (dict(kind="sigmoid", mesh=1), "unknown field 'mesh'"),
    (dict(kind="total"), "objective.parts is empty"),
    (dict(kind="total", parts=dict(a=dict(kind="softmx"))), "objective.parts.a.kind: unknown"),
  ],
)
def test_mistakes_are_named(cfg, said):
  with pytest.raises(ValueError) as e:
    table.make(cfg)
  assert said in str(e.value)


@pytest.mark.parametrize("kind", sorted(set(table.OBJECTIVES) - {"total"}))
def test_every_kind_has_defaults(kind):
  assert callable(table.make(dict(kind=kind)))
