"""The Q-Former connector: what its queries see, and which rows are whose."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigvlm.models.connectors import qformer
from bigvlm.types import Features, Item

_SIZES = dict(out_dim=10, queries=3, width=8, depth=3, heads=2, hidden=12, vocab=20, length=6)


@pytest.fixture(scope="module")
def made():
  """Module, parameters, features of two pictures a row, and their texts."""
  module = qformer.QFormer(**_SIZES)
  rng = np.random.default_rng(0)
  x = jnp.asarray(rng.standard_normal((2, 2, 5, 7)), jnp.float32)
  feats = {"image": Features(x, jnp.ones((2, 2, 5), jnp.int32))}
  texts = dict(
    query_tokens=jnp.asarray(rng.integers(1, 20, (2, 2, 4)), jnp.int32),
    query_mask=jnp.ones((2, 2, 4), jnp.int32).at[:, :, 3].set(0),
  )
  params = module.init(jax.random.key(0), feats)["params"]
  leaves, tree = jax.tree.flatten(params)
  leaves = [leaf + 0.3 * rng.standard_normal(leaf.shape).astype(np.float32) for leaf in leaves]
  return module, tree.unflatten(leaves), feats, texts


def _run(made, feats=None, **texts):
  module, params, mine, given = made
  return module.apply({"params": params}, feats or mine, extra=given | texts)


def test_a_picture_is_read_by_itself(made):
  _, _, feats, texts = made
  whole = np.asarray(_run(made).x)
  other = feats["image"].replace(x=feats["image"].x.at[:, 1].add(1.0))
  changed = np.asarray(_run(made, {"image": other}).x)
  np.testing.assert_array_equal(whole[:, :3], changed[:, :3])
  assert np.abs(whole[:, 3:] - changed[:, 3:]).min() > 0
  assert whole.shape == (2, 6, 10)


def test_the_text_changes_what_is_seen_and_its_padding_does_not(made):
  _, _, _, texts = made
  tokens = texts["query_tokens"]
  plain = np.asarray(_run(made).x)
  asked = np.asarray(_run(made, query_tokens=tokens.at[0, 0, 1].add(1)).x)
  padded = np.asarray(_run(made, query_tokens=tokens.at[:, :, 3].set(0)).x)
  assert np.abs(plain[0, :3] - asked[0, :3]).max() > 1e-3
  np.testing.assert_array_equal(plain[1], asked[1])
  np.testing.assert_array_equal(plain, padded)


def test_scan_gives_the_numbers_of_loop(made):
  module, params, feats, texts = made
  scan = module.clone(mode="scan").apply({"params": params}, feats, extra=texts)
  np.testing.assert_allclose(scan.hidden, _run(made).hidden, atol=1e-5)


def test_a_missing_or_too_long_text_is_refused(made):
  module, params, feats, texts = made
  with pytest.raises(ValueError, match="query_tokens"):
    module.apply({"params": params}, feats)
  long = {k: jnp.tile(v, (1, 1, 2)) for k, v in texts.items()}
  with pytest.raises(ValueError, match="8 tokens, but the Q-Former reads 6"):
    module.apply({"params": params}, feats, extra=long)


def test_rows_are_the_queries_of_every_slot():
  module = qformer.QFormer(**_SIZES)
  rows = module.rows([Item(0, (1, 4, 4)), Item(1, (2, 4, 4))])
  assert [r.tolist() for r in rows] == [[0, 1, 2], [3, 4, 5, 6, 7, 8]]


def test_every_so_many_layers_read_the_picture(made):
  _, params, _, _ = made
  stack = params["blocks"]
  assert "cross" in stack["g0"]["b0"] and "cross" not in stack["g0"]["b1"]
  assert "cross" in stack["g1"]["b0"] and "b1" not in stack["g1"]
