"""ViT of SAM (arXiv 2304.02643) and ViTDet (arXiv 2203.16527): attention in squares of the grid.

Most layers see squares of `window` x `window` patches, some see everything; all have relative
positions, a row and a column part (MViTv2, arXiv 2112.01526). Reference: transformers'
`SamVisionEncoder`.
"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from bigvlm.layers import attention, blocks, dense, mlp, norms
from bigvlm.layers.module import Module
from bigvlm.models.vision import vit
from bigvlm.types import Features, Media


@dataclasses.dataclass(frozen=True)
class Square(blocks.Kind):
  """A layer on a grid of patches.

  Attributes:
    side: of the squares its attention stays in, in patches; 0 = it sees the whole grid.
    grid: patches (h, w) of a picture.
    relative: whether there are relative positions.
  """

  side: int = 0
  grid: tuple[int, int] = (0, 0)
  relative: bool = True


def squares(x: jax.Array, side: int) -> jax.Array:
  """[B, H, W, D] -> [B * squares, side, side, D], zeros where the last ones stick out."""
  batch, height, width, dim = x.shape
  rows, columns = -(-height // side), -(-width // side)
  x = jnp.pad(x, ((0, 0), (0, rows * side - height), (0, columns * side - width), (0, 0)))
  x = x.reshape(batch, rows, side, columns, side, dim).swapaxes(2, 3)
  return x.reshape(-1, side, side, dim)


def grids(x: jax.Array, grid: tuple[int, int]) -> jax.Array:
  """What `squares` made of [B, H, W, D] with that grid (H, W), put back."""
  (height, width), side, dim = grid, x.shape[1], x.shape[-1]
  rows, columns = -(-height // side), -(-width // side)
  x = x.reshape(-1, rows, columns, side, side, dim).swapaxes(2, 3)
  return x.reshape(-1, rows * side, columns * side, dim)[:, :height, :width]


class GridAttention(Module):
  """Self-attention over a grid, with a bias that queries and relative positions make.

  The bias of a query and a key is q . rows[dy] + q . columns[dx], of the unscaled query.

  Attributes:
    spec: sizes, biases and dtypes. relative: whether there are the tables `rows` and `columns`,
      [2 * side - 1, head_dim].
  """

  spec: blocks.LayerSpec
  relative: bool = True

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """x [B, H, W, D] -> the same."""
    s = self.spec
    batch, height, width, _ = x.shape
    dtypes = dict(dtype=s.dtype, param_dtype=s.param_dtype)
    flat = x.reshape(batch, height * width, s.width)
    shape = (s.width, s.heads, s.head_dim)
    q, k, v = (
      dense.Linear("bld,dhk->blhk", shape, 2, s.bias, name=name, **dtypes)(flat) for name in "qkv"
    )
    bias = None
    if self.relative:
      spread = q.reshape(batch, height, width, s.heads, s.head_dim)
      near = dense.einsum("bhwnc,hkc->bnhwk", spread, self._table("rows", height), jnp.float32)
      aside = dense.einsum("bhwnc,wkc->bnhwk", spread, self._table("columns", width), jnp.float32)
      bias = near[..., :, None] + aside[..., None, :]
      bias = bias.reshape(batch, s.heads, height * width, height * width)
    q = q * jnp.asarray(s.query_scale, q.dtype)
    y = attention.attend(q, k, v, None, bias=bias)
    shape = (s.heads, s.head_dim, s.width)
    y = dense.Linear("blhk,hkd->bld", shape, name="o", **dtypes)(y)
    return y.reshape(x.shape)

  def _table(self, name: str, side: int) -> jax.Array:
    """Vectors [side, side, head_dim] of the places of a query and of a key."""
    shape = (2 * side - 1, self.spec.head_dim)
    table = self.param(name, nn.initializers.zeros, shape, self.spec.param_dtype)
    apart = np.subtract.outer(np.arange(side), np.arange(side)) + side - 1
    return table.astype(self.spec.dtype)[apart]


class Layer(nn.Module):
  """x + attention(norm(x)) within squares, then x + mlp(norm(x)); `kind` is a `Square`."""

  spec: blocks.LayerSpec
  kind: Square

  @nn.compact
  def __call__(self, x: jax.Array, ctx: blocks.Ctx, cache: None) -> tuple[jax.Array, None]:
    """x [B, N, D] -> the same, and no cache."""
    s, kind = self.spec, self.kind
    dtypes = dict(dtype=s.dtype, param_dtype=s.param_dtype)

    def norm(name: str, y: jax.Array) -> jax.Array:
      return norms.NORMS[s.norm](eps=s.eps, name=name, **dtypes)(y)

    y = norm("norm1", x).reshape(x.shape[0], *kind.grid, s.width)
    attend = GridAttention(s, kind.relative, name="attn")
    y = grids(attend(squares(y, kind.side)), kind.grid) if kind.side else attend(y)
    x = x + y.reshape(x.shape)
    x = x + mlp.Mlp(s.hidden, s.act, name="mlp", **dtypes)(norm("norm2", x))
    return x, None


class Neck(nn.Module):
  """1x1 and 3x3 convolution without biases, a LayerNorm after each (ViTDet)."""

  out_dim: int
  dtype: jnp.dtype = jnp.float32
  param_dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """x [B, H, W, D] -> [B, H, W, out_dim]."""
    dtypes = dict(dtype=self.dtype, param_dtype=self.param_dtype)
    for n, side in ((1, 1), (2, 3)):
      x = nn.Conv(self.out_dim, (side, side), use_bias=False, name=f"conv{n}", **dtypes)(x)
      x = norms.LayerNorm(name=f"norm{n}", **dtypes)(x)
    return x


class Sam(Module):
  """SAM's picture encoder. Pictures have one size: its tables are of that grid.

  Attributes:
    width, depth, hidden, heads, patch: sizes as of `vit.ViT`.
    table: the grid (h, w) of patches.
    window: side of the squares, in patches. everywhere: numbers of the layers that see it all.
    out_dim: channels of the neck.
    tap: number of layers after which the features are read too, by a neck of their own; 0 = at the
      end only.
    absolute, relative: whether there are learned and relative positions.
    act, eps, bias: of the layers; `bias` is that of q, k and v.
    mean, std: per channel, for uint8 pixels: (x / 255 - mean) / std.
    pool: "none".
    mode, remat: see `blocks.Stack`.
  """

  width: int
  depth: int
  hidden: int
  heads: int
  patch: int
  table: tuple[int, int]
  window: int = 14
  everywhere: tuple[int, ...] = (2, 5, 8, 11)
  out_dim: int = 256
  tap: int = 0
  absolute: bool = True
  relative: bool = True
  act: str = "gelu"
  eps: float = 1e-6
  bias: bool = True
  mean: tuple[float, ...] = (0.48145466, 0.4578275, 0.40821073)
  std: tuple[float, ...] = (0.26862954, 0.26130258, 0.27577711)
  pool: str = "none"
  mode: str = "loop"
  remat: str = "none"
  dtype: jnp.dtype = jnp.float32
  param_dtype: jnp.dtype = jnp.float32

  # Nobody else resizes its tables.
  resizes = True

  @property
  def size(self) -> tuple[int, int]:
    """(height, width) in pixels of the pictures."""
    return self.table[0] * self.patch, self.table[1] * self.patch

  @nn.nowrap
  def grid(self, height: int, width: int) -> tuple[int, int]:
    """Patch grid (h, w) of an image."""
    return height // self.patch, width // self.patch

  @nn.nowrap
  def groups(self) -> tuple:
    """Pattern of layers for `blocks.Stack`; one group ends where the tap is."""
    kinds = [
      Square(side=side * (i not in self.everywhere), grid=self.table, relative=self.relative)
      for i, side in enumerate((self.window,) * self.depth)
    ]
    parts = (kinds[: self.tap], kinds[self.tap :])
    return tuple(_repeated(part) for part in parts if part)

  @nn.compact
  def __call__(self, media: Media, *, train: bool = False) -> Features:
    """media.pixels [B, I, H, W, 3] -> x [B, I, N, C], N the patches of the grid row by row.

    C is the neck's channels and behind them, with a tap, those of its neck.

    Raises:
      ValueError: pictures of another size.
    """
    batch, slots, height, width, _ = media.pixels.shape
    if (height, width) != self.size:
      raise ValueError(f"this encoder takes pictures of {self.size} pixels, not {(height, width)}")
    dtypes = dict(dtype=self.dtype, param_dtype=self.param_dtype)
    pixels = media.pixels.reshape(batch * slots, height, width, 3)
    if pixels.dtype == jnp.uint8:
      mean, std = (jnp.asarray(v, jnp.float32) * 255 for v in (self.mean, self.std))
      pixels = (pixels.astype(jnp.float32) - mean) / std
    shape, init = (self.patch, self.patch, 3, self.width), nn.initializers.lecun_normal()
    linear = dense.Linear("bnpqc,pqcd->bnd", shape, init=init, name="patch", **dtypes)
    x = linear(vit.patches(pixels, self.patch))
    if self.absolute:
      shape = (1, *self.table, self.width)
      table = self.param("posemb", nn.initializers.zeros, shape, self.param_dtype)
      x = x + table.reshape(1, -1, self.width).astype(x.dtype)
    run = blocks.Stack(
      vit.encoder_spec(self), self.groups(), self.mode, self.remat, Layer, name="blocks"
    )
    after: list[jax.Array] = []
    x, _ = run(x, blocks.Ctx(train=train), after=after)
    found = []
    for name, y in (("neck", x), ("tap_neck", after[0]))[: 2 if self.tap else 1]:
      y = y.reshape(batch * slots, *self.table, self.width)
      found.append(Neck(self.out_dim, name=name, **dtypes)(y))
    x = jnp.concatenate(found, axis=-1).reshape(batch, slots, -1, len(found) * self.out_dim)
    return Features(x, jnp.broadcast_to(media.item[:, :, None], x.shape[:3]))


def _repeated(kinds: list[Square]) -> tuple[tuple[Square, ...], int]:
  """(shortest period, repeats) of a list of layers."""
  count = len(kinds)
  periods = (p for p in range(1, count + 1) if count % p == 0)
  period = next(p for p in periods if all(kinds[i] == kinds[i % p] for i in range(count)))
  return tuple(kinds[:period]), count // period
