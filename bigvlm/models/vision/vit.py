"""Vision transformer (arXiv 2010.11929) with the published variants of big_vision.

Reference: google-research/big_vision `models/vit.py`. The patch size is free, the
image size is whatever comes in; only the learned position table has a grid.
"""

import re

import flax.linen as nn
import jax
import jax.numpy as jnp

from bigvlm.layers import attention, blocks, dense, mlp, norms, posemb
from bigvlm.types import Features, Media

# width, depth, mlp, heads (a_core of arXiv 2106.04560, 2205.01580 and 2305.13035).
VARIANTS = {
  "mu": (32, 1, 128, 2),
  "Ti": (192, 12, 768, 3),
  "S": (384, 12, 1536, 6),
  "M": (512, 12, 2048, 8),
  "B": (768, 12, 3072, 12),
  "L": (1024, 24, 4096, 16),
  "So400m": (1152, 27, 4304, 16),
  "H": (1280, 32, 5120, 16),
  "g": (1408, 40, 6144, 16),
  "g-opt": (1536, 40, 6144, 16),
  "G": (1664, 48, 8192, 16),
  "G-opt": (1536, 48, 8192, 16),
  "e": (1792, 56, 15360, 16),
}


def decode_variant(variant: str) -> dict:
  """Sizes of a variant: "So400m/14" -> width, depth, hidden, heads and patch; "B" has no patch.

  Raises:
    ValueError: the name is not of the form NAME or NAME/PATCH with a known NAME.
  """
  match = re.fullmatch(r"([A-Za-z0-9-]+?)(?:/(\d+))?", variant)
  if not match or match[1] not in VARIANTS:
    raise ValueError(f"ViT variant {variant!r} is not NAME/PATCH with NAME in {list(VARIANTS)}")
  width, depth, hidden, heads = VARIANTS[match[1]]
  sizes = dict(width=width, depth=depth, hidden=hidden, heads=heads)
  return sizes | ({"patch": int(match[2])} if match[2] else {})


def encoder_spec(width, heads, hidden, dropout, dtype, param_dtype) -> blocks.LayerSpec:
  """The layer of ViT and of its text tower: pre-LN, biases, gelu (tanh form)."""
  dim = width // heads
  return blocks.LayerSpec(
    width,
    heads,
    hidden,
    kv_heads=heads,
    head_dim=dim,
    query_scale=dim**-0.5,
    dropout=dropout,
    dtype=dtype,
    param_dtype=param_dtype,
  )


class MapHead(nn.Module):
  """Multi-head attention pooling with one learned `probe` (Set Transformer, arXiv 1810.00825)."""

  heads: int
  hidden: int
  dtype: jnp.dtype = jnp.float32
  param_dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """x [B, N, D] -> [B, D]."""
    dtypes = dict(dtype=self.dtype, param_dtype=self.param_dtype)
    dim = x.shape[-1] // self.heads
    shape = (1, 1, x.shape[-1])
    probe = self.param("probe", nn.initializers.xavier_uniform(), shape, self.param_dtype)
    probe = jnp.broadcast_to(probe.astype(self.dtype), (x.shape[0], 1, x.shape[-1]))
    attn = attention.Attention(self.heads, self.heads, dim, dim**-0.5, name="attn", **dtypes)
    y, _ = attn(probe, x)
    z = norms.LayerNorm(name="norm", **dtypes)(y)
    return (y + mlp.Mlp(self.hidden, name="mlp", **dtypes)(z))[:, 0]


class ConvStem(nn.Module):
  """Convolutions of stride 2 down to the patch grid, in place of one linear map per patch.

  3x3, each with LayerNorm and gelu, widths doubling up to `width`, then a linear map ("Early
  Convolutions Help Transformers See Better", arXiv 2106.14881, with LayerNorm for BatchNorm).

  Attributes:
    width, patch: of the tower; the patch is a power of 2.
    blocks: residual 3x3 convolutions on the patch grid, after the strided ones.
  """

  width: int
  patch: int
  blocks: int = 0
  dtype: jnp.dtype = jnp.float32
  param_dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """x [B, h * patch, w * patch, 3] -> [B, h * w, D]."""
    dtypes = dict(dtype=self.dtype, param_dtype=self.param_dtype)
    count = self.patch.bit_length() - 1
    if self.patch != 2**count or self.width % 2**count:
      raise ValueError(
        f"stem 'conv' needs a patch that is a power of 2, not {self.patch}, and a "
        f"width that is a multiple of it, not {self.width}"
      )
    for i in range(count):
      channels = self.width >> (count - 1 - i)
      x = nn.Conv(channels, (3, 3), (2, 2), ((1, 1), (1, 1)), name=f"conv{i}", **dtypes)(x)
      x = jax.nn.gelu(norms.LayerNorm(name=f"norm{i}", **dtypes)(x), approximate=True)
    for i in range(self.blocks):
      y = norms.LayerNorm(name=f"block{i}_norm", **dtypes)(x)
      y = nn.Conv(self.width, (3, 3), name=f"block{i}_conv", **dtypes)(y)
      x = x + jax.nn.gelu(y, approximate=True)
    x = x.reshape(x.shape[0], -1, self.width)
    return dense.Linear("bnd,de->bne", (self.width, self.width), name="out", **dtypes)(x)


class ViT(nn.Module):
  """ViT encoder.

  Attributes:
    width, depth, hidden, heads, patch: sizes (see `decode_variant`).
    stem: "patch", a linear map of each patch, or "conv" (see `ConvStem`; few steps from scratch).
    stem_blocks: residual convolutions of a "conv" stem.
    posemb: "learn" or "sincos2d".
    posemb_std: of a learned table at the start; 0 = width ** -0.5, the reference's, which is small
      beside the patches: fine for long training, slow to tell places apart in a short one.
    pool: "map", "gap", "tok" (class token) or "none".
    rep_size: width of an extra tanh layer on the pooled vector; 0 = none.
    out_dim: width of a linear head on the pooled vector; 0 = none.
    mean, std: per channel, for uint8 pixels: (x / 255 - mean) / std.
    dropout: rate in the layers.
    mode, remat: see `blocks.Stack`.
  """

  width: int
  depth: int
  hidden: int
  heads: int
  patch: int
  stem: str = "patch"
  stem_blocks: int = 0
  posemb: str = "learn"
  posemb_std: float = 0.0
  pool: str = "none"
  rep_size: int = 0
  out_dim: int = 0
  mean: tuple[float, ...] = (0.5, 0.5, 0.5)
  std: tuple[float, ...] = (0.5, 0.5, 0.5)
  dropout: float = 0.0
  mode: str = "loop"
  remat: str = "none"
  dtype: jnp.dtype = jnp.float32
  param_dtype: jnp.dtype = jnp.float32

  @nn.nowrap
  def grid(self, height: int, width: int) -> tuple[int, int]:
    """Patch grid (h, w) of an image; pixels beyond the last whole patch are dropped."""
    return height // self.patch, width // self.patch

  @nn.compact
  def __call__(self, media: Media, *, train: bool = False) -> Features:
    """media.pixels [B, I, H, W, 3] -> patches [B, I, N, D] and, with a pool, pooled [B, I, D']."""
    batch, slots, height, width, _ = media.pixels.shape
    grid = self.grid(height, width)
    x = self._embed(media.pixels.reshape(batch * slots, height, width, 3), grid)
    spec = encoder_spec(
      self.width, self.heads, self.hidden, self.dropout, self.dtype, self.param_dtype
    )
    groups = (((blocks.Kind(),), self.depth),)
    stack = blocks.Stack(spec, groups, self.mode, self.remat, name="blocks")
    x, _ = stack(x, blocks.Ctx(train=train))
    x = norms.LayerNorm(name="norm", dtype=self.dtype, param_dtype=self.param_dtype)(x)
    pooled = self._pool(x)
    if self.pool == "tok":
      x = x[:, 1:]
    x = x.reshape(batch, slots, -1, self.width)
    item = jnp.broadcast_to(media.item[:, :, None], x.shape[:3])
    return Features(x, item, None if pooled is None else pooled.reshape(batch, slots, -1))

  def _embed(self, pixels: jax.Array, grid: tuple[int, int]) -> jax.Array:
    p, (h, w) = self.patch, grid
    if pixels.dtype == jnp.uint8:
      mean, std = (jnp.asarray(v, jnp.float32) * 255 for v in (self.mean, self.std))
      pixels = (pixels.astype(jnp.float32) - mean) / std
    x = pixels[:, : h * p, : w * p]
    dtypes = dict(dtype=self.dtype, param_dtype=self.param_dtype)
    if self.stem == "conv":
      x = ConvStem(self.width, p, self.stem_blocks, name="stem", **dtypes)(x.astype(self.dtype))
    else:
      x = x.reshape(-1, h, p, w, p, 3).transpose(0, 1, 3, 2, 4, 5).reshape(-1, h * w, p, p, 3)
      shape, init = (p, p, 3, self.width), nn.initializers.lecun_normal()
      x = dense.Linear("bnpqc,pqcd->bnd", shape, init=init, name="patch", **dtypes)(x)
    if self.posemb == "learn":
      init = nn.initializers.normal(self.posemb_std or self.width**-0.5)
      table = self.param("posemb", init, (1, h * w, self.width), self.param_dtype)
    else:
      table = jnp.asarray(posemb.sincos2d(grid, self.width))
    x = x + table.astype(x.dtype)
    if self.pool == "tok":
      cls = self.param("cls", nn.initializers.zeros, (1, 1, self.width), self.param_dtype)
      cls = jnp.broadcast_to(cls.astype(x.dtype), (x.shape[0], 1, self.width))
      x = jnp.concatenate([cls, x], axis=1)
    return x

  def _pool(self, x: jax.Array) -> jax.Array | None:
    dtypes = dict(dtype=self.dtype, param_dtype=self.param_dtype)
    if self.pool == "none":
      return None
    if self.pool == "map":
      x = MapHead(self.heads, self.hidden, name="pool", **dtypes)(x)
    elif self.pool == "gap":
      x = jnp.mean(x, axis=1)
    else:
      x = x[:, 0]
    if self.rep_size:
      shape = (x.shape[-1], self.rep_size)
      x = jnp.tanh(dense.Linear("bd,de->be", shape, name="pre_logits", **dtypes)(x))
    if self.out_dim:
      shape = (x.shape[-1], self.out_dim)
      head = dense.Linear("bd,de->be", shape, init=nn.initializers.zeros, name="head", **dtypes)
      x = head(x)
    return x


STEMS = ("patch", "conv")
POSEMBS = ("learn", "sincos2d")
POOLS = ("map", "gap", "tok", "none")
