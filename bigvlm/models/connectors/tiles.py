"""Any-resolution connector: a picture as its overview and tiles (LLaVA-NeXT, LLaVA-OneVision)."""

import math
from collections.abc import Mapping, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from bigvlm.layers import dense
from bigvlm.layers.module import Module
from bigvlm.models.connectors import mlp
from bigvlm.processing import tiling
from bigvlm.types import Features, Item, Soft

FRAMES = ("", "average", "max", "bilinear")


class TilesConnector(Module):
  """Overview and tiles of a picture, put together as the picture they were cut from.

  A picture with a size has a slot with all of it and a slot for each of its tiles, row by row.
  After the overview come the patches of the joined tiles, line by line, without those of empty
  margins (`tiling.unpadded`) and scaled down when there are too many; behind each line stands the
  learned `newline`. A picture without a size is one slot and one `newline`.

  The frames of a video are pooled, each by itself.

  Rows of `Soft`: `newline`, then for every slot its N patches and, with `frames`, its P pooled.

  Attributes:
    out_dim, hidden, act, bias: of the matrices, see `mlp.Projector`.
    source: encoder name; its patches form a square.
    most: with more patches than 1.21 times those of so many tiles a picture is scaled down to about
      that many, bilinearly; 0 = never (`tiling.pooled`).
    frames: how frames are pooled: "average" or "max" of squares before the matrices (what is left
      at the edges is dropped), "bilinear" behind them (rounded up); "" = no videos.
    stride: by how much. video_newline: whether `newline` ends a video.
  """

  out_dim: int
  hidden: int = 0
  act: str = "gelu"
  bias: bool = True
  source: str = "image"
  most: int = 0
  frames: str = ""
  stride: int = 2
  video_newline: bool = False
  dtype: jnp.dtype = jnp.float32
  param_dtype: jnp.dtype = jnp.float32

  @nn.nowrap
  def pooled(self, side: int) -> int:
    """Side of a pooled frame of side x side patches; 0 without videos."""
    if not self.frames:
      return 0
    return -(-side // self.stride) if self.frames == "bilinear" else side // self.stride

  @nn.nowrap
  def rows(self, items: Sequence[Item]) -> list[np.ndarray]:
    """Rows of `Soft.x` that stand for each item, in reading order: the only count of tokens.

    Raises:
      ValueError: a video for a model without, or patches that form no square.
    """
    return [self._video(item) if item.video else self._picture(item) for item in items]

  def _video(self, item: Item) -> np.ndarray:
    t, side, _ = item.grid
    n, p = self._sizes(item)
    if not p:
      raise ValueError("there is a video, but this model takes pictures only")
    slots = 1 + np.arange(item.slot, item.slot + t)[:, None] * (n + p)
    index = (slots + np.arange(n, n + p)).reshape(-1)
    return np.append(index, [0] * self.video_newline).astype(np.int32)

  def _picture(self, item: Item) -> np.ndarray:
    n, p = self._sizes(item)
    overview = 1 + item.slot * (n + p) + np.arange(n)
    if not any(item.size):
      return np.append(overview, 0).astype(np.int32)
    lines = self._joined(item, n + p, 1)
    rows, columns = self._shrunk(lines.shape, item.grid[1])
    if (rows, columns) != lines.shape:  # These lie where its tiles lay: see `extra`.
      at = np.arange(rows * columns)
      lines = 1 + (item.slot + 1 + at // n) * (n + p) + at % n
      lines = lines.reshape(rows, columns)
    lines = np.pad(lines, ((0, 0), (0, 1)))
    return np.concatenate([overview, lines.reshape(-1)]).astype(np.int32)

  def _sizes(self, item: Item) -> tuple[int, int]:
    """Patches and pooled patches of a slot."""
    _, h, w = item.grid
    if h != w:
      raise ValueError(f"the tiles connector needs a square of patches, not {h} x {w}")
    return h * w, self.pooled(h) ** 2

  def _joined(self, item: Item, stride: int, first: int) -> np.ndarray:
    """Where the patches of the joined tiles lie: slot * stride + patch + first, without margins."""
    (rows, columns), (_, h, w) = item.tiles, item.grid
    tile = np.arange(rows * columns).reshape(rows, 1, columns, 1)
    patch = np.arange(h * w).reshape(1, h, 1, w)
    index = first + (item.slot + 1 + tile) * stride + patch
    index = index.reshape(rows * h, columns * w)
    left = tiling.unpadded(item.size, index.shape)
    top, side = ((a - b) // 2 for a, b in zip(index.shape, left, strict=True))
    return index[top : top + left[0], side : side + left[1]]

  def _shrunk(self, grid: tuple[int, ...], side: int) -> tuple[int, int]:
    return tiling.pooled(grid, side, self.most) if self.most else tuple(grid)

  @nn.nowrap
  def extra(self, rows: Sequence[Sequence[Item]], slots: int) -> dict[str, np.ndarray]:
    """What `__call__` needs beside the features, to scale pictures down.

    Args:
      rows: the items of every row of a batch. slots: of a row.

    Returns:
      `shrink_index` int32 and `shrink_weight` float32 [B, slots * N, 4]: the patches, and the
      weight of each, that every patch is to be replaced by; {} where nothing is scaled.
    """
    found = [[self._shrinking(i) for i in row if not i.video and any(i.size)] for row in rows]
    if not any(made for row in found for made in row):
      return {}
    n = next(item.grid[1] ** 2 for row in rows for item in row)
    index, weight = self.neutral(len(rows), slots, n).values()
    for row, made in enumerate(found):
      for start, places, weights in filter(None, made):
        index[row, start : start + len(places)] = places
        weight[row, start : start + len(places)] = weights
    return {"shrink_index": index, "shrink_weight": weight}

  @nn.nowrap
  def neutral(self, rows: int, slots: int, patches: int) -> dict[str, np.ndarray]:
    """`extra` of `rows` rows that scales nothing; {} for a model that never does."""
    if not self.most:
      return {}
    index = np.arange(slots * patches, dtype=np.int32)[None, :, None].repeat(4, 2).repeat(rows, 0)
    weight = np.zeros(index.shape, np.float32)
    weight[..., 0] = 1.0
    return {"shrink_index": index, "shrink_weight": weight}

  def _shrinking(self, item: Item) -> tuple[int, np.ndarray, np.ndarray] | None:
    """First patch, and `extra` from there on, of a picture that is scaled down; else None."""
    n = item.grid[1] ** 2
    lines = self._joined(item, n, 0)
    rows, columns = self._shrunk(lines.shape, item.grid[1])
    if (rows, columns) == lines.shape:
      return None
    (y, wy), (x, wx) = _linear(lines.shape[0], rows), _linear(lines.shape[1], columns)
    places = lines[y[:, None, :, None], x[None, :, None, :]].reshape(-1, 4)
    weights = (wy[:, None, :, None] * wx[None, :, None, :]).reshape(-1, 4)
    return (item.slot + 1) * n, places, weights

  @nn.compact
  def __call__(
    self,
    feats: Mapping[str, Features],
    *,
    extra: Mapping[str, jax.Array] | None = None,
    train: bool = False,
  ) -> Soft:
    """feats[source].x [B, I, N, D] -> Soft with x [B, 1 + I * (N + P), out_dim].

    Args:
      feats: by name. extra: `extra` of every row, [B, I * N, 4], where pictures are scaled down.
      train: unused.

    Raises:
      ValueError: N is no square number, or `frames` has another value.
    """
    if self.frames not in FRAMES:
      raise ValueError(f"connector.frames is {self.frames!r}, not one of {FRAMES}")
    f = feats[self.source]
    batch, slots, patches, width = f.x.shape
    side = math.isqrt(patches)
    if side * side != patches:
      raise ValueError(f"the tiles connector needs a square of patches, not {patches} of them")
    dtypes = dict(dtype=self.dtype, param_dtype=self.param_dtype)
    project = mlp.Projector(
      self.out_dim, self.hidden, self.act, self.bias, name="projector", **dtypes
    )

    def projected(x: jax.Array) -> jax.Array:
      y = project(x.reshape(batch, -1, x.shape[-1]))
      return y.reshape(batch, slots, -1, self.out_dim)

    x = projected(f.x)
    parts = [x]
    if self.frames == "bilinear":
      parts.append(self._bilinear(x, side))
    elif self.frames:
      parts.append(projected(self._squares(f.x, side)))
    if extra and "shrink_index" in extra:
      parts[0] = _replaced(x, extra["shrink_index"], extra["shrink_weight"])
    x = jnp.concatenate(parts, axis=2).reshape(batch, -1, self.out_dim)
    init = nn.initializers.normal(self.out_dim**-0.5)
    newline = self.param("newline", init, (self.out_dim,), self.param_dtype).astype(x.dtype)
    newline = jnp.broadcast_to(newline, (batch, 1, self.out_dim))
    item = jnp.repeat(f.item[:, :, 0], x.shape[1] // slots, axis=1)
    item = jnp.pad(item, ((0, 0), (1, 0)), constant_values=-1)
    return Soft(jnp.concatenate([newline, x], axis=1), item)

  def _squares(self, x: jax.Array, side: int) -> jax.Array:
    """[B, I, N, D] -> [B, I, P, D], the average or the maximum of squares."""
    n, s = side // self.stride, self.stride
    x = x.reshape(*x.shape[:2], side, side, -1)[:, :, : n * s, : n * s]
    x = x.reshape(*x.shape[:2], n, s, n, s, x.shape[-1])
    y = x.astype(jnp.float32).mean(axis=(3, 5)) if self.frames == "average" else x.max(axis=(3, 5))
    return y.astype(x.dtype).reshape(*x.shape[:2], n * n, x.shape[-1])

  def _bilinear(self, x: jax.Array, side: int) -> jax.Array:
    """[B, I, N, D] -> [B, I, P, D], resized."""
    n = self.pooled(side)
    index, weight = _linear(side, n)
    matrix = np.zeros((n, side), np.float32)
    np.add.at(matrix, (np.arange(n)[:, None], index), weight)
    y = x.reshape(*x.shape[:2], side, side, -1)
    y = dense.einsum("biyxd,py->bipxd", y, jnp.asarray(matrix))
    y = dense.einsum("bipxd,qx->bipqd", y, jnp.asarray(matrix))
    return y.reshape(*x.shape[:2], n * n, x.shape[-1])


def _linear(size: int, out: int) -> tuple[np.ndarray, np.ndarray]:
  """Linear interpolation without antialiasing, half a pixel off the corners.

  Returns:
    int [out, 2] and float32 [out, 2]: the two places that each value is made of, and their weights.
  """
  at = np.maximum((np.arange(out) + 0.5) * (size / out) - 0.5, 0.0)
  low = np.minimum(at.astype(np.int64), size - 1)
  part = (at - low).astype(np.float32)
  index = np.stack([low, np.minimum(low + 1, size - 1)], axis=1)
  return index, np.stack([1.0 - part, part], axis=1)


def _replaced(x: jax.Array, index: jax.Array, weight: jax.Array) -> jax.Array:
  """[B, I, N, D] with every patch the weighted sum of others; index and weight [B, I * N, 4]."""
  flat = x.reshape(x.shape[0], -1, x.shape[-1])
  total = 0.0
  for k in range(index.shape[-1]):
    found = jnp.take_along_axis(flat, index[:, :, k, None], axis=1).astype(jnp.float32)
    total += found * weight[:, :, k, None]
  return total.astype(x.dtype).reshape(x.shape)
