"""Adam whose moments take a byte each, for models whose optimiser state would not fit.

Blocks of the last axis share a scale, as in "8-bit Optimizers via Block-wise Quantization" (arXiv
2110.02861). In place of its lookup table, values are stored by their square root (the second
moment by its fourth), which spends the levels where moments are: near zero. Rounding is at random,
so that a moment that moves by less than a level a step still moves as it should on average.
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax

_BLOCK = 256
_LEAST = 4096  # Leaves with fewer numbers stay in float32: norms and biases.


def adam8(b1=0.9, b2=0.999, eps=1e-8) -> optax.GradientTransformation:
  """Adam's direction with moments of 8 bits.

  State: `count` int32 []; `mu` int8 and `nu` uint8 like the parameters (so that they are laid out
  over a mesh like them), `mu_scale` and `nu_scale` float32, one for each block of 256 of the last
  axis (of the whole of it, when 256 does not divide it). Leaves below 4096 numbers: float32.
  """

  def init(params):
    return dict(
      count=jnp.zeros([], jnp.int32),
      mu=jax.tree.map(
        lambda p: jnp.zeros(p.shape, jnp.int8 if _packed(p) else jnp.float32), params
      ),
      nu=jax.tree.map(
        lambda p: jnp.zeros(p.shape, jnp.uint8 if _packed(p) else jnp.float32), params
      ),
      mu_scale=jax.tree.map(_scales, params),
      nu_scale=jax.tree.map(_scales, params),
    )

  def update(grads, state, params=None):
    del params
    count = state["count"] + 1
    scale1 = 1.0 / (1.0 - b1 ** count.astype(jnp.float32))
    scale2 = 1.0 / (1.0 - b2 ** count.astype(jnp.float32))
    leaves, treedef = jax.tree.flatten(grads)
    parts = [treedef.flatten_up_to(state[k]) for k in ("mu", "nu", "mu_scale", "nu_scale")]
    out, new = [], ([], [], [], [])
    for n, (g, mu, nu, mu_scale, nu_scale) in enumerate(zip(leaves, *parts, strict=True)):
      g = g.astype(jnp.float32)
      packed = mu.dtype == jnp.int8
      if packed:
        mu, nu = unpack(mu, mu_scale), jnp.square(unpack(nu, nu_scale))
      mu = b1 * mu + (1.0 - b1) * g
      nu = b2 * nu + (1.0 - b2) * jnp.square(g)
      out.append(mu * scale1 / (jnp.sqrt(nu * scale2) + eps))
      if packed:
        keys = jax.random.split(jax.random.fold_in(jax.random.key(n), count))
        mu, mu_scale = pack(mu, jnp.int8, keys[0])
        nu, nu_scale = pack(jnp.sqrt(nu), jnp.uint8, keys[1])
      for into, x in zip(new, (mu, nu, mu_scale, nu_scale), strict=True):
        into.append(x)
    mu, nu, mu_scale, nu_scale = (treedef.unflatten(x) for x in new)
    state = dict(count=count, mu=mu, nu=nu, mu_scale=mu_scale, nu_scale=nu_scale)
    return treedef.unflatten(out), state

  return optax.GradientTransformation(init, update)


def _packed(p: Any) -> bool:
  """Whether a parameter's moments are packed."""
  return p.ndim > 0 and p.size >= _LEAST


def _blocks(shape: tuple[int, ...]) -> tuple[int, ...]:
  """Shape [..., blocks, numbers in a block] of a packed leaf."""
  size = _BLOCK if shape[-1] % _BLOCK == 0 else shape[-1]
  return (*shape[:-1], shape[-1] // size, size)


def _scales(p: Any) -> jax.Array:
  return jnp.zeros(_blocks(p.shape)[:-1] if _packed(p) else (0,), jnp.float32)


def pack(x: jax.Array, dtype: Any, key: jax.Array) -> tuple[jax.Array, jax.Array]:
  """float32 as int8 (or uint8, for x >= 0) like it, and the scale of every block.

  A level q stands for (q / most)^2 of the block's largest. What is not 0 never becomes level 0 of
  an uint8: a second moment of 0 would divide by nothing.
  """
  most = jnp.iinfo(dtype).max
  blocks = x.reshape(_blocks(x.shape))
  top = jnp.max(jnp.abs(blocks), axis=-1)
  level = most * jnp.sqrt(jnp.abs(blocks) / jnp.maximum(top, 1e-38)[..., None])
  level = jnp.floor(level + jax.random.uniform(key, level.shape))
  if dtype == jnp.uint8:
    level = jnp.where(blocks > 0, jnp.maximum(level, 1), 0)
  level = jnp.minimum(level, most) * jnp.sign(blocks)
  return level.reshape(x.shape).astype(dtype), top


def unpack(q: jax.Array, scale: jax.Array) -> jax.Array:
  """The inverse of `pack`, to within a level: float32 of q's shape."""
  level = q.astype(jnp.float32) / jnp.iinfo(q.dtype).max
  blocks = (jnp.square(level) * jnp.sign(level)).reshape(_blocks(q.shape))
  return (blocks * scale[..., None]).reshape(q.shape)
