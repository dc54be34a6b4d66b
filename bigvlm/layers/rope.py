"""Rotary position embedding (RoFormer, arXiv 2104.09864, section 3.4; half-split layout)."""

import jax
import jax.numpy as jnp
import numpy as np


def tables(
  positions: jax.Array, dim: int, base: float, scale: float = 1.0
) -> tuple[jax.Array, jax.Array]:
  """Cosine and sine tables, float32 [B, L, dim / 2], of int positions [B, L].

  `scale` divides the frequencies: position interpolation (arXiv 2306.15595).
  """
  # On the host, rounded once: XLA's power is off by several units in the last place.
  freq = (base ** (-np.arange(0, dim, 2) / dim) / scale).astype(np.float32)
  angle = positions.astype(jnp.float32)[..., None] * freq
  return jnp.cos(angle), jnp.sin(angle)


def rotate(x: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
  """Rotates heads x [B, L, H, dim]; feature i is paired with i + dim / 2; x's dtype."""
  a, b = jnp.split(x.astype(jnp.float32), 2, axis=-1)
  cos, sin = cos[:, :, None], sin[:, :, None]
  return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1).astype(x.dtype)
