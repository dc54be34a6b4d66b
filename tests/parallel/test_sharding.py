"""Sharding rules: which leaf goes where, optimiser states, and what a wrong rule is told."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bigvlm.parallel import mesh as mesh_lib
from bigvlm.parallel import sharding
from bigvlm.utils import tree


@pytest.fixture(scope="module")
def mesh():
  return mesh_lib.make(dict(data=2, fsdp=2, tensor=2))


def leaf(*shape):
  return jax.ShapeDtypeStruct(shape, jnp.float32)


PARAMS = dict(
  decoder=dict(
    blocks=dict(up=dict(kernel=leaf(6, 16, 64), bias=leaf(6, 64)), scale=leaf(6, 16)),
    embed=leaf(33, 16),
  ),
  t=leaf(1),
  odd=leaf(3, 5),
  square=leaf(8, 8),
)


def specs(places):
  return jax.tree.map(lambda s: tuple(s.spec), places)


def test_rules_address_trailing_dimensions_and_the_first_match_wins(mesh):
  rules = (
    (".*/up/kernel", ("fsdp", "tensor")),
    (".*/kernel", (None, "fsdp")),
    ("decoder/embed", (None, ("fsdp", "tensor"))),
    ("square", ()),
  )
  out = specs(sharding.shardings(PARAMS, mesh, rules))
  assert out["decoder"]["blocks"]["up"]["kernel"] == (None, "fsdp", "tensor")
  assert out["decoder"]["embed"] == (None, ("fsdp", "tensor"))
  assert out["square"] == (None, None)


def test_without_a_rule_the_largest_divisible_dimension_goes_over_fsdp(mesh):
  out = specs(sharding.shardings(PARAMS, mesh))
  assert out["decoder"]["blocks"]["up"]["kernel"] == (None, None, "fsdp")
  assert out["decoder"]["embed"] == (None, "fsdp")  # 33 rows do not divide.
  assert out["t"] == out["odd"] == ()
  assert out["square"] == (None, "fsdp")


def test_without_fsdp_all_is_replicated():
  mesh = mesh_lib.make(dict(data=8))
  assert all(not s.spec for s in jax.tree.leaves(sharding.shardings(PARAMS, mesh)))


def test_arrays_can_be_put_and_come_back(mesh):
  params = jax.tree.map(lambda s: np.random.default_rng(0).normal(size=s.shape), PARAMS)
  put = jax.device_put(params, sharding.shardings(PARAMS, mesh))
  jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, np.float32(b)), put, params)


@pytest.mark.parametrize(
  "tx,expected",
  [(optax.adam(1e-3), 10), (optax.adafactor(1e-3, min_dim_size_to_factor=8), 2)],
)
def test_optimiser_state_lies_where_its_parameters_do(mesh, tx, expected):
  rules = ((".*/up/kernel", ("fsdp", "tensor")), ("decoder/.*", (None,)))
  state = jax.eval_shape(tx.init, PARAMS)
  places = tree.flatten(sharding.shardings(state, mesh, rules, params=PARAMS))
  want, shapes = tree.flatten(sharding.shardings(PARAMS, mesh, rules)), tree.flatten(PARAMS)
  copies = 0
  for name, leaf in tree.flatten(state).items():
    places[name].shard_shape(leaf.shape)  # Raises if it does not divide.
    for param, place in want.items():
      if name.endswith("/" + param) and leaf.shape == shapes[param].shape:
        assert places[name] == place, name
        copies += len(place.spec) > 0
  assert copies == expected


@pytest.mark.parametrize(
  "rule,said",
  [
    ((".*/kernel", ("model",)), "unknown mesh axis 'model'; options: data, fsdp, tensor"),
    (("decoder/embed", ("fsdp", None)), "cuts decoder/embed of shape [33, 16] over mesh axis"),
    (("odd", (None, "tensor")), "cuts odd of shape [3, 5] over mesh axis 'tensor': 5 is not"),
    (("t", ("data", "fsdp")), "names 2 dimensions, t has shape [1]"),
    (("decoder/embeds", ()), "did you mean 'decoder/embed'"),
    (("decoder", ()), "patterns must match whole names"),
  ],
)
def test_mistakes_are_named(mesh, rule, said):
  with pytest.raises(ValueError) as e:
    sharding.shardings(PARAMS, mesh, (rule,))
  assert said in str(e.value)
