"""Matching of images and texts when it trains: what is written, contrasted and drawn."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigvlm import build
from bigvlm.hub import inputs
from bigvlm.models import matching
from bigvlm.parallel import mesh as mesh_lib
from bigvlm.types import Batch, Media
from bigvlm.utils import tree

ROWS, LENGTH, START = 8, 5, 19
CONFIG = dict(
  kind="matching",
  encoders=dict(image=dict(kind="vit", width=8, depth=1, hidden=8, heads=2, patch=4)),
  connector=dict(
    kind="qformer", queries=3, width=8, depth=2, heads=2, hidden=12, vocab=20, length=6
  ),
  out_dim=6,
)
TRAINED = CONFIG | dict(temperature_init=10.0, word_head=True)


@pytest.fixture(scope="module")
def made():
  """Module, parameters, batch; texts are of 3 to 5 tokens."""
  rng = np.random.default_rng(0)
  tokens = rng.integers(1, START, (ROWS, LENGTH)).astype(np.int32)
  mask = (np.arange(LENGTH) < rng.integers(3, LENGTH + 1, (ROWS, 1))).astype(np.int32)
  wanted = tokens.copy()
  wanted[:, 0] = START
  read = np.broadcast_to(np.arange(LENGTH - 1, dtype=np.int32), (ROWS, LENGTH - 1))
  batch = Batch(
    inputs.text(tokens, mask, 0, read),
    {"image": Media(rng.standard_normal((ROWS, 1, 8, 8, 3), np.float32), np.ones((ROWS, 1)))},
    tokens[:, 1:],
    mask[:, 1:].astype(np.float32),
    target=inputs.text(wanted, mask, 1, read),
  )
  module = build.model(TRAINED)
  params = jax.jit(module.init)(jax.random.key(0), batch)["params"]
  leaves, shape = jax.tree.flatten(params)
  leaves = [x + 0.3 * rng.standard_normal(x.shape).astype(np.float32) for x in leaves]
  return module, shape.unflatten(leaves), batch


@pytest.fixture(scope="module")
def run(made):
  """(batch, key) -> outputs in training."""
  module, params, _ = made

  def call(batch, seed=0):
    rngs = {"dropout": jax.random.key(seed)}
    return module.apply({"params": params}, batch, train=True, rngs=rngs)

  return jax.jit(call)


def _seen(batch, **change):
  return batch.replace(target=batch.target.replace(**change))


def test_a_checkpoints_parameters_are_the_same_with_and_without_what_trains(made):
  module, params, batch = made
  plain = build.model(CONFIG)
  names = jax.eval_shape(plain.init, jax.random.key(0), batch)["params"]
  more = tree.flatten(params).keys() - tree.flatten(names).keys()
  assert {name.split("/")[0] for name in more} == {"t", "words"}
  mine = {k: v for k, v in params.items() if k in names}
  found, whole = (
    jax.jit(m.apply)({"params": p}, batch) for m, p in ((plain, mine), (module, params))
  )
  assert found.heads.keys() == {"image", "text", "match"} == whole.heads.keys()
  for name, x in found.heads.items():
    np.testing.assert_allclose(whole.heads[name], x, atol=1e-5)  # The queries see no text.


def test_a_written_token_sees_queries_and_the_past(made, run):
  _, _, batch = made
  logits = np.asarray(run(batch).logits)
  later = np.asarray(run(_seen(batch, tokens=batch.target.tokens + (np.arange(5) == 2))).logits)
  np.testing.assert_allclose(logits[:, :2], later[:, :2], atol=1e-6)
  assert np.abs(logits[:, 2:] - later[:, 2:]).max(axis=(1, 2)).min() > 1e-3
  other = {"image": batch.media["image"].replace(pixels=-batch.media["image"].pixels)}
  assert np.abs(np.asarray(run(batch.replace(media=other)).logits) - logits).max() > 1e-3
  # The words that are read with the picture are not those that are written of it.
  asked = batch.replace(text=batch.text.replace(tokens=batch.text.tokens[::-1]))
  np.testing.assert_allclose(np.asarray(run(asked).logits), logits, atol=1e-6)


def test_scores_are_of_the_nearest_query(made, run):
  heads = {k: np.asarray(v) for k, v in run(made[2]).heads.items()}
  want = np.stack([(heads["image"][n] @ heads["text"].T).max(0) for n in range(ROWS)])
  np.testing.assert_allclose(heads["scores"], want, atol=1e-6)
  np.testing.assert_allclose(heads["scale"], np.exp(made[1]["t"][0]), rtol=1e-6)


def test_mismatches_are_pairs_of_the_batch_that_do_not_belong_together(made, run):
  module, params, batch = made
  image = np.repeat(np.arange(ROWS), ROWS)
  text = np.tile(np.arange(ROWS), ROWS)
  pairs = batch.replace(
    text=jax.tree.map(lambda x: x[text], batch.text),
    media=jax.tree.map(lambda x: x[image], batch.media),
    target=None,
  )
  every = jax.jit(module.apply)({"params": params}, pairs).heads["match"].reshape(ROWS, ROWS, 2)

  def drawn(found, row, side):
    mine = every[:, row] if side == 0 else every[row]
    near = np.abs(np.asarray(mine) - np.asarray(found[row, side])).max(-1)
    assert near.min() < 1e-5
    return int(near.argmin())

  bad = np.array(batch.weights)
  bad[3] = 0
  seen = {0: set(), 1: set()}
  for seed in range(12):
    found = run(batch.replace(weights=bad), seed).heads["mismatch"]
    for row in range(ROWS):
      for side in seen:
        other = drawn(found, row, side)
        assert other not in (row, 3)
        seen[side].add((row, other))
  assert all(len(x) > ROWS for x in seen.values())  # Not the same one every time.


def test_hard_ones_are_drawn_more_often():
  scores = jnp.asarray([[9.0, 2.0, 0.0, 5.0], [0, 0, 0, 0], [1, 3, 2, 5], [1, 2, 3, 4]])
  real = jnp.asarray([True, True, True, False])
  p = np.exp(matching.negatives(scores, real))
  np.testing.assert_allclose(p.diagonal(), 0)
  np.testing.assert_allclose(p[:, 3], 0)
  share = np.exp(scores[0, :3]) / np.exp(scores[0, :3]).sum()
  np.testing.assert_allclose(p[0, 1:3], share[1:] + 1e-4, rtol=1e-5)
  assert np.isfinite(p).all()


def test_a_batch_that_is_cut_draws_from_all_of_it(made, run):
  _, params, batch = made
  mesh = mesh_lib.make(dict(data=8))
  cut = jax.device_put(batch, mesh_lib.batch_sharding(mesh))
  whole, parts = run(batch, 5), run(cut, 5)
  np.testing.assert_allclose(parts.heads["scores"], whole.heads["scores"], atol=1e-5)
  np.testing.assert_allclose(parts.heads["mismatch"], whole.heads["mismatch"], atol=1e-4)
  np.testing.assert_allclose(parts.logits, whole.logits, atol=1e-4)
