"""LayerNorm and RMSNorm with float32 statistics whatever the compute dtype."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from bigvlm.layers.module import Module


class LayerNorm(Module):
  """LayerNorm over the last axis with `scale` and `bias` [D] (Ba et al., 2016)."""

  eps: float = 1e-6
  dtype: jnp.dtype = jnp.float32
  param_dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """x [..., D] -> [..., D] in `dtype`."""
    scale = self.param("scale", nn.initializers.ones, x.shape[-1:], self.param_dtype)
    bias = self.param("bias", nn.initializers.zeros, x.shape[-1:], self.param_dtype)
    x = x.astype(jnp.float32)
    mean = jnp.mean(x, axis=-1, keepdims=True)
    centred = x - mean
    var = jnp.mean(jnp.square(centred), axis=-1, keepdims=True)
    y = centred * (jax.lax.rsqrt(var + self.eps) * scale.astype(jnp.float32))
    return (y + bias.astype(jnp.float32)).astype(self.dtype)


class BareLayerNorm(nn.Module):
  """LayerNorm over the last axis without parameters."""

  eps: float = 1e-6
  dtype: jnp.dtype = jnp.float32
  param_dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """x [..., D] -> [..., D] in `dtype`."""
    x = x.astype(jnp.float32)
    centred = x - jnp.mean(x, axis=-1, keepdims=True)
    var = jnp.mean(jnp.square(centred), axis=-1, keepdims=True)
    return (centred * jax.lax.rsqrt(var + self.eps)).astype(self.dtype)


class RMSNorm(Module):
  """RMSNorm over the last axis, multiplied by 1 + `scale` [D], which starts at 0 (Gemma).

  The product with 1 + scale is formed in float32 before the cast, as the
  references of decoders with this convention do.
  """

  eps: float = 1e-6
  dtype: jnp.dtype = jnp.float32
  param_dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """x [..., D] -> [..., D] in `dtype`."""
    scale = self.param("scale", nn.initializers.zeros, x.shape[-1:], self.param_dtype)
    x = x.astype(jnp.float32)
    var = jnp.mean(jnp.square(x), axis=-1, keepdims=True)
    y = x * jax.lax.rsqrt(var + self.eps) * (1.0 + scale.astype(jnp.float32))
    return y.astype(self.dtype)


class PlainRMSNorm(Module):
  """RMSNorm over the last axis, multiplied by `scale` [D] after the cast (T5, Llama, AIMv2)."""

  eps: float = 1e-6
  dtype: jnp.dtype = jnp.float32
  param_dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """x [..., D] -> [..., D] in `dtype`."""
    scale = self.param("scale", nn.initializers.ones, x.shape[-1:], self.param_dtype)
    x = x.astype(jnp.float32)
    y = x * jax.lax.rsqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + self.eps)
    return y.astype(self.dtype) * scale.astype(self.dtype)


NORMS = {"layer": LayerNorm, "layer_bare": BareLayerNorm, "rms": RMSNorm, "rms_plain": PlainRMSNorm}
