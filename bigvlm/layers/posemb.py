"""Position tables: sines, and resampling of a learned table to another grid.

Resampling is linear in the table, so each method is a matrix [new, old] an axis,
made in float64 on the host. Several methods, because checkpoints differ:

- `linear_corners`: the corner samples keep their places; what big_vision's ViT
  does with `scipy.ndimage.zoom(order=1)`.
- `bilinear_antialias`: half-pixel centres, triangle filter widened when the grid
  shrinks; NaFlex and SigLIP 2, for each image's own grid.
- `bicubic`: half-pixel centres, Keys cubic with a = -0.75, edges clamped, no
  antialias; what transformers' ViT and DINOv2 do. (`jax.image.resize("cubic")`
  has a = -0.5 and antialiases.)
- `bicubic_tenth`: the same as if the new grid were a tenth longer, which was a guard
  against rounding (DINO, IDEFICS).
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def _linear_corners(new: int, old: int) -> np.ndarray:
  at = np.linspace(0.0, old - 1.0, new) if new > 1 else np.zeros(1)
  return np.maximum(0.0, 1.0 - np.abs(at[:, None] - np.arange(old)[None]))


def _triangle(index: Any, new: Any, old: int, xp: Any) -> Any:
  width = xp.maximum(old / new, 1.0)
  at = (index + 0.5) * (old / new) - 0.5
  weights = xp.maximum(0.0, 1.0 - xp.abs(at[..., None] - xp.arange(old)) / width[..., None])
  return weights / weights.sum(axis=-1, keepdims=True)


def _bilinear_antialias(new: int, old: int) -> np.ndarray:
  return _triangle(np.arange(new), np.float64(new), old, np)


def bilinear_antialias_at(index: jax.Array, new: jax.Array, old: int) -> jax.Array:
  """Rows of the "bilinear_antialias" matrix, for grids that are known only in the graph.

  Args:
    index: int32 [...], wanted rows. new: int32 [...], at least 1, size of the grid of each.
    old: size of the table's grid.

  Returns:
    float32 [..., old].
  """
  return _triangle(index.astype(jnp.float32), new.astype(jnp.float32), old, jnp)


def _bicubic(new: int, old: int, a: float = -0.75, more: float = 0.0) -> np.ndarray:
  at = (np.arange(new) + 0.5) * (old / (new + more)) - 0.5
  first = np.floor(at).astype(int)
  out = np.zeros((new, old))
  for tap in range(-1, 3):
    d = np.abs(at - (first + tap))
    near = ((a + 2) * d - (a + 3)) * d * d + 1
    far = ((a * d - 5 * a) * d + 8 * a) * d - 4 * a
    column = np.clip(first + tap, 0, old - 1)
    np.add.at(out, (np.arange(new), column), np.where(d <= 1, near, far))
  return out


METHODS = {
  "linear_corners": _linear_corners,
  "bilinear_antialias": _bilinear_antialias,
  "bicubic": _bicubic,
  "bicubic_tenth": functools.partial(_bicubic, more=0.1),
}


def resample(
  table: np.ndarray, old: tuple[int, int], new: tuple[int, int], method: str
) -> np.ndarray:
  """Resamples a position table to another patch grid.

  Args:
    table: [1, h * w, D] (row-major), any float dtype.
    old: its grid (h, w).
    new: the wanted grid (h', w').
    method: a key of `METHODS`.

  Returns:
    [1, h' * w', D] in the table's dtype; the same values when old == new.

  Raises:
    ValueError: the table does not have h * w rows, or the method is unknown.
  """
  if method not in METHODS:
    raise ValueError(f"position resampling {method!r} is none of {', '.join(METHODS)}")
  if table.shape[1] != old[0] * old[1]:
    raise ValueError(f"position table {table.shape} does not hold a grid of {old[0]}x{old[1]}")
  if tuple(old) == tuple(new):
    return table
  grid = np.asarray(table, np.float64).reshape(*old, -1)
  rows, columns = (METHODS[method](n, o) for n, o in zip(new, old, strict=True))
  out = np.einsum("ph,qw,hwd->pqd", rows, columns, grid, optimize=True)
  return out.reshape(1, new[0] * new[1], -1).astype(table.dtype)


def sincos2d(grid: tuple[int, int], width: int, temperature: float = 10_000.0) -> np.ndarray:
  """Fixed table, float32 [1, h * w, width]: sin x, cos x, sin y, cos y (MoCo v3, arXiv 2104.02057).

  Raises:
    ValueError: width is not a multiple of 4.
  """
  return _sines(grid, width, temperature, max(width // 4 - 1, 1))


def sincos2d_aim(grid: tuple[int, int], width: int, temperature: float = 10_000.0) -> np.ndarray:
  """As `sincos2d`, with exponents k / (width / 4): the table of AIMv2 at native resolution.

  Reference: transformers' `Aimv2VisionEmbeddings`.
  """
  return _sines(grid, width, temperature, width // 4)


def _sines(grid: tuple[int, int], width: int, temperature: float, steps: int) -> np.ndarray:
  if width % 4:
    raise ValueError(f"a table of sines needs a width that is a multiple of 4, not {width}")
  y, x = np.mgrid[: grid[0], : grid[1]]
  omega = 1.0 / temperature ** (np.arange(width // 4) / steps)
  y, x = (np.outer(v.reshape(-1), omega) for v in (y, x))
  table = np.concatenate([np.sin(x), np.cos(x), np.sin(y), np.cos(y)], axis=1)
  return table[None].astype(np.float32)


def buckets(count: int, size: int, length: int = 0) -> np.ndarray:
  """Rows of an axis of `size` rows for an axis of `count` patches: about i * size / count.

  int32 [count], or [length], where those behind the last patch have the last row.

  With the roundings of the reference (`Idefics2VisionEmbeddings`), on which hangs what becomes of a
  patch that lies on the edge of a row. It makes float32 edges in pairs of eights, and in double
  precision what is left; in an eight, steps are added to a first edge that is rounded already.
  """
  step = 1.0 / size
  index = np.arange(math.ceil((1.0 - step) / step))
  first = np.where(index < len(index) // 16 * 16, index // 8 * 8, index)
  edges = np.float32(step + step * first).astype(np.float64) + step * (index - first)
  at = np.arange(length or count, dtype=np.float32) * (np.float32(1.0) / np.float32(count))
  at = np.minimum(at, np.float32(1.0 - 1e-6))
  return np.searchsorted(edges.astype(np.float32), at, side="right").astype(np.int32)


TABLES = {"sincos2d": sincos2d, "sincos2d_aim": sincos2d_aim}
