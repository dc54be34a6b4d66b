"""Parameters of a module, stored or made."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from flax import errors

from bigvlm.layers.module import Module


def test_a_parameter_is_made_once_and_of_another_shape_refused():
  calls = []

  class Scaled(Module):
    @nn.compact
    def __call__(self, x):
      return x * self.param("scale", init, (3,))

  def init(key, shape):
    calls.append(shape)
    return jnp.ones(shape)

  x = jnp.ones((2, 3))
  params = Scaled().init(jax.random.key(0), x)["params"]
  assert calls == [(3,)]
  assert Scaled().apply({"params": params}, x).shape == (2, 3)
  assert calls == [(3,)]
  with pytest.raises(errors.ScopeParamShapeError, match=r"scale.*\(3,\).*\(5,\)"):
    Scaled().apply({"params": {"scale": jnp.ones(5)}}, x)
