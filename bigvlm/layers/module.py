"""The base of the modules that have parameters of their own."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
from flax import errors


class Module(nn.Module):
  """linen's Module, but a parameter that is there has its shape read, and is not initialised again
  to be asked for it: that was two fifths of the time to trace a model."""

  @nn.nowrap
  def param(self, name: str, init: Callable, shape: tuple[int, ...], *rest: Any) -> jax.Array:
    """The parameter [*shape]: what is stored, or `init(key, shape, *rest)`.

    Raises:
      flax.errors.ScopeParamShapeError: what is stored has another shape.
    """
    if self.scope is None or not self.has_variable("params", name):
      return super().param(name, init, shape, *rest)
    stored = self.get_variable("params", name)
    if stored.shape != tuple(shape):
      raise errors.ScopeParamShapeError(name, self.scope.path_text, stored.shape, tuple(shape))
    return stored
