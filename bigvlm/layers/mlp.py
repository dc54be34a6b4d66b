"""Feed-forward layers."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from bigvlm.layers import dense

ACTIVATIONS = {
  "gelu_tanh": functools.partial(jax.nn.gelu, approximate=True),
  "gelu": functools.partial(jax.nn.gelu, approximate=False),
  "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),
  "silu": jax.nn.silu,
  "relu": jax.nn.relu,
  "relu2": lambda x: jnp.square(jax.nn.relu(x)),
}


class Mlp(nn.Module):
  """down(act(up(x))), or down(act(gate(x)) * up(x)) when gated (GLU variants, arXiv 2002.05202).

  `out_dim` is the width of what comes out; 0 = that of what goes in.
  """

  hidden: int
  act: str = "gelu_tanh"
  gated: bool = False
  bias: bool = True
  out_dim: int = 0
  dtype: jnp.dtype = jnp.float32
  param_dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """x [B, L, D] -> [B, L, out_dim or D]."""
    width = x.shape[-1]

    def linear(name: str, n_in: int, n_out: int) -> dense.Linear:
      return dense.Linear(
        "bld,df->blf",
        (n_in, n_out),
        bias=self.bias,
        bias_init=nn.initializers.normal(1e-6),
        dtype=self.dtype,
        param_dtype=self.param_dtype,
        name=name,
      )

    act = ACTIVATIONS[self.act]
    y = linear("up", width, self.hidden)(x)
    y = act(linear("gate", width, self.hidden)(x)) * y if self.gated else act(y)
    return linear("down", self.hidden, self.out_dim or width)(y)
