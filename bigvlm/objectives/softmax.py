"""Symmetric softmax contrastive loss (InfoNCE; CLIP, arXiv 2103.00020), in memory O(N x chunk).

The loss of N pairs is 1/(2N) sum_i (lse_j l_ij - l_ii + lse_j l_ji - l_ii), l =
scale x y^T. One walk over the tiles takes the log-sum-exp of all rows and
columns online, a second one forms the gradient; no tile is kept. Over a mesh
each device keeps its images and passes its texts around a ring.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from bigvlm import types
from bigvlm.objectives import tiles
from bigvlm.parallel import collectives

Array = jax.Array
_NONE = -1e30  # Logit of a pair that does not count: finite, so that differences are too.


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def softmax_loss(
  image: Array,
  text: Array,
  scale: Array,
  valid: Array,
  mesh: Mesh | None = None,
  chunk: int = 0,
) -> tuple[Array, Array, Array]:
  """Mean symmetric softmax loss over the valid rows; arguments and results as `sigmoid_loss`."""
  loss, hits, count, _ = _run(image, text, scale, valid, mesh, chunk, grads=False)
  return loss, hits, count


def _forward(image, text, scale, valid, mesh, chunk):
  loss, hits, count, raw = _run(image, text, scale, valid, mesh, chunk, grads=True)
  like = tuple(jnp.zeros((), x.dtype) for x in (image, text, scale))
  return (loss, hits, count), (raw, scale, count, like)


def _backward(mesh, chunk, residuals, cotangents):
  (dx, dy, dscale), scale, count, like = residuals
  g = cotangents[0] / jnp.maximum(count, 1.0)
  grads = dx * (g * scale), dy * (g * scale), dscale * g
  return *(x.astype(one.dtype) for x, one in zip(grads, like, strict=True)), None


softmax_loss.defvjp(_forward, _backward)


def _run(image, text, scale, valid, mesh, chunk, grads):
  """(loss, hits, count, gradients times count: dx, dy without scale, dscale)."""
  chunk = tiles.chunk_size(chunk, mesh)
  fn = functools.partial(_part, mesh=mesh, chunk=chunk, grads=grads)
  raw = (True, True, False) if grads else None
  fn = collectives.over_batch(fn, mesh, (True, True, False, True), (False, False, False, raw))
  return fn(image, text, scale.astype(jnp.float32), (valid > 0).astype(jnp.float32))


def _part(image, text, scale, valid, *, mesh, chunk, grads):
  """`_run` for the rows of one device."""
  n = image.shape[0]
  walk = functools.partial(tiles.walk, x=image, wx=valid, chunk=min(chunk, n))
  empty = (jnp.full((n,), _NONE), jnp.zeros((n,)))

  def first(state, moving, hops):
    y, wy, cols = moving
    body = functools.partial(_sum_tile, scale=scale, hops=hops)
    state, cols = walk(body, (state, cols), y=y, wy=wy)
    return state, (y, wy, cols)

  state = empty, jnp.full((n,), -jnp.inf)
  (rows, best), (_, _, cols) = collectives.ring(first, state, (text, valid, empty), mesh)
  of_rows, of_cols = (m + jnp.log(jnp.maximum(s, 1e-30)) for m, s in (rows, cols))
  dots = tiles.row_dots(image, text, valid)
  losses = 0.5 * (of_rows + of_cols) - scale * dots
  loss = jnp.where(valid > 0, losses, 0.0).sum()
  hits = (valid * (scale * dots > best)).sum()
  loss, hits, count = collectives.total((loss, hits, valid.sum()), mesh)
  loss = loss / jnp.maximum(count, 1.0)
  if not grads:
    return loss, hits, count, None

  def second(dx, moving, hops):
    y, wy, lse, dy = moving
    body = functools.partial(_gradient_tile, scale=scale, hops=hops, lse=(of_rows, lse))
    dx, dy = walk(body, (dx, dy), y=y, wy=wy)
    return dx, (y, wy, lse, dy)

  dx, dy = jnp.zeros(image.shape, jnp.float32), jnp.zeros(text.shape, jnp.float32)
  dx, (_, _, _, dy) = collectives.ring(second, dx, (text, valid, of_cols, dy), mesh)
  dscale = collectives.total(tiles.row_dots(image, dx, valid).sum(), mesh)
  return loss, hits, count, (dx, dy, dscale)


def _sum_tile(carry, rows, cols, *, scale, hops):
  (of_rows, best), of_cols = carry
  x = tiles.logits(rows, cols, scale)
  best = tiles.rivals(best, x, tiles.diagonal(rows, cols, hops), rows, cols)
  x = jnp.where(tiles.counts(rows, cols), x, _NONE)

  def add(old, part, axis, weigh):
    top, total = (tiles.get(a, part) for a in old)
    new = jnp.maximum(top, x.max(axis=axis))
    total = total * jnp.exp(top - new) + weigh(jnp.exp(x - jnp.expand_dims(new, axis)))
    return tiles.put(old[0], part, new), tiles.put(old[1], part, total)

  of_rows = add(of_rows, rows, 1, lambda e: e @ cols.w)
  of_cols = add(of_cols, cols, 0, lambda e: rows.w @ e)
  return (of_rows, best), of_cols


def _gradient_tile(carry, rows, cols, *, scale, hops, lse):
  x = tiles.logits(rows, cols, scale)
  row, col = tiles.get(lse[0], rows)[:, None], tiles.get(lse[1], cols)[None, :]
  g = 0.5 * (jnp.exp(x - row) + jnp.exp(x - col))
  g = jnp.where(tiles.diagonal(rows, cols, hops), g - 1.0, g)
  g = jnp.where(tiles.counts(rows, cols), g, 0.0)
  return tiles.add_gradient(*carry, g, rows, cols)


@dataclasses.dataclass(frozen=True)
class Softmax:
  """Objective of a two-tower model; see `softmax_loss`.

  Reads heads `image` [B, D], `text` [B, D] and `scale`; a bias would cancel. A row
  counts when any of its `batch.weights` does. Metrics: `accuracy` (image to
  text, within the batch; a tie is a miss), `scale`, and `loss` over the rows that count.
  """

  mesh: Mesh | None = None
  chunk: int = 0

  def __call__(self, out: types.Outputs, batch: types.Batch):
    """Gives (loss float32 [], {metric: (sum, count)})."""
    image, text, scale = (out.heads[k] for k in ("image", "text", "scale"))
    scale = scale.reshape(())
    valid = tiles.valid_rows(batch, image.shape[0])
    loss, hits, count = softmax_loss(image, text, scale, valid, self.mesh, self.chunk)
    one = jnp.ones(())
    return loss, {
      "loss": (loss * count, count),
      "accuracy": (hits, count),
      "scale": (scale, one),
    }
