"""Walking over an N x M matrix of pairs in tiles, without ever holding it.

Both contrastive losses look at every pair of N images and M texts. They hold one
`chunk` x `chunk` tile of logits at a time and O((N + M) x D) beside it.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh

from bigvlm import types

Array = jax.Array
_CHUNK = {"cpu": 1024}  # Fits the caches; elsewhere launches cost more than memory.
_CHUNK_ELSEWHERE = 8192


class Part(NamedTuple):
  """`size` consecutive rows of one side.

  Attributes:
    start: first row.
    x: [size, D] embeddings, zero in rows that do not count.
    w: float32 [size], 1 in rows that count: valid, and not seen in the part before.
  """

  start: Array
  x: Array
  w: Array


def chunk_size(chunk: int, mesh: Mesh | None) -> int:
  """`chunk`, or what suits the platform of the mesh when it is 0."""
  if chunk:
    return chunk
  platform = jax.default_backend() if mesh is None else mesh.devices.flat[0].platform
  return _CHUNK.get(platform, _CHUNK_ELSEWHERE)


def walk(body: Callable, state: Any, x: Array, wx: Array, y: Array, wy: Array, chunk: int) -> Any:
  """Runs `body(state, rows: Part, cols: Part) -> state` over all tiles of x [N, D] and y [M, D].

  When `chunk` does not divide N, the last part starts earlier so that all have
  one shape, and weighs the rows that were seen already with 0.
  """

  def outer(i, state):
    rows = _part(x, wx, i, chunk)
    return lax.fori_loop(
      0, _count(y, chunk), lambda j, s: body(s, rows, _part(y, wy, j, chunk)), state
    )

  return lax.fori_loop(0, _count(x, chunk), outer, state)


def _count(x: Array, chunk: int) -> int:
  return -(-x.shape[0] // chunk)


def _part(x: Array, w: Array, i: Array, chunk: int) -> Part:
  size = min(chunk, x.shape[0])
  start = jnp.minimum(i * size, x.shape[0] - size)
  seen = start + jnp.arange(size) < i * size
  weight = jnp.where(seen, 0.0, lax.dynamic_slice_in_dim(w, start, size))
  rows = lax.dynamic_slice_in_dim(x, start, size)
  # A row that does not count may hold anything, NaN included.
  return Part(start, jnp.where(weight[:, None] > 0, rows, 0), weight)


def get(x: Array, part: Part) -> Array:
  """The rows of `part` in an array [N, ...]."""
  return lax.dynamic_slice_in_dim(x, part.start, part.w.shape[0])


def put(x: Array, part: Part, rows: Array) -> Array:
  """`x` with the rows of `part` replaced."""
  return lax.dynamic_update_slice_in_dim(x, rows, part.start, 0)


def logits(rows: Part, cols: Part, scale: Array) -> Array:
  """float32 [r, c]: scale x (row . column), summed in float32."""
  return scale * _dot(rows.x, cols.x, 1, 1)


def diagonal(rows: Part, cols: Part, hops: Array | int) -> Array:
  """bool [r, c]: is it a pair that belongs together? Only in a block with itself (hops 0)."""
  shape = rows.w.shape[0], cols.w.shape[0]
  row = rows.start + lax.broadcasted_iota(jnp.int32, shape, 0)
  col = cols.start + lax.broadcasted_iota(jnp.int32, shape, 1)
  return (row == col) & (hops == 0)


def counts(rows: Part, cols: Part) -> Array:
  """bool [r, c]: do both members count?"""
  return (rows.w[:, None] * cols.w[None, :]) > 0


def add_gradient(dx: Array, dy: Array, g: Array, rows: Part, cols: Part) -> tuple[Array, Array]:
  """Adds g @ y to `dx` [N, D] and g^T @ x to `dy` [M, D]; g float32 [r, c].

  g is cast to the type of the embeddings, as it is in any backward pass in that
  type; the sums are float32.
  """
  g = g.astype(rows.x.dtype)
  dx = put(dx, rows, get(dx, rows) + _dot(g, cols.x, 1, 0))
  dy = put(dy, cols, get(dy, cols) + _dot(g, rows.x, 0, 0))
  return dx, dy


def rivals(best: Array, x: Array, own: Array, rows: Part, cols: Part) -> Array:
  """Updates `best` [N], the largest logit of each row with a text that is not its own."""
  other = jnp.where(own | (cols.w[None, :] == 0), -jnp.inf, x)
  return put(best, rows, jnp.maximum(get(best, rows), other.max(axis=1)))


def row_dots(x: Array, y: Array, valid: Array) -> Array:
  """float32 [N]: x_i . y_i, 0 in rows that do not count."""
  dots = (x.astype(jnp.float32) * y.astype(jnp.float32)).sum(axis=-1)
  return jnp.where(valid > 0, dots, 0.0)


def valid_rows(batch: types.Batch, n: int) -> Array:
  """float32 [n]: 1 for a row with any weight; all 1 when the batch has no weights."""
  if batch.weights is None:
    return jnp.ones((n,), jnp.float32)
  return (batch.weights.reshape(n, -1).sum(axis=-1) > 0).astype(jnp.float32)


def _dot(a: Array, b: Array, i: int, j: int) -> Array:
  dims = (((i,), (j,)), ((), ()))
  return lax.dot_general(a, b, dims, preferred_element_type=jnp.float32)
