"""Vision transformer (arXiv 2010.11929) with the published variants of big_vision.

Reference: google-research/big_vision `models/vit.py`. The patch size is free, the
image size is whatever comes in; only the learned position table has a grid.
"""

import dataclasses
import re

import flax.linen as nn
import jax
import jax.numpy as jnp

from bigvlm.layers import blocks, dense, norms, posemb
from bigvlm.layers.module import Module
from bigvlm.models.vision import pool
from bigvlm.types import Features, Media

# width, depth, mlp, heads (arXiv 2106.04560, 2205.01580, 2209.06794, 2302.05442, 2305.13035).
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
  "22B": (6144, 48, 24576, 48),
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


# Fields that towers may share with their layers, under the same names.
_SHARED = ("norm", "eps", "act", "gated", "bias", "out_bias", "mlp_bias", "layer_scale", "dropout")
_SHARED += ("rope_base", "dtype", "param_dtype")


def encoder_spec(tower: nn.Module) -> blocks.LayerSpec:
  """The layer of an encoder or a text tower, from the fields it has (see `ViT`)."""
  dim = getattr(tower, "head_dim", 0) or tower.width // tower.heads
  return blocks.LayerSpec(
    tower.width,
    tower.heads,
    tower.hidden,
    kv_heads=tower.heads,
    head_dim=dim,
    query_scale=dim**-0.5,
    **{name: getattr(tower, name) for name in _SHARED if hasattr(tower, name)},
  )


def patches(pixels: jax.Array, patch: int) -> jax.Array:
  """[B, H, W, C] -> [B, h * w, patch, patch, C], row by row, without what is left at the edges."""
  h, w = pixels.shape[1] // patch, pixels.shape[2] // patch
  x = pixels[:, : h * patch, : w * patch]
  x = x.reshape(x.shape[0], h, patch, w, patch, x.shape[-1]).transpose(0, 1, 3, 2, 4, 5)
  return x.reshape(x.shape[0], h * w, *x.shape[3:])


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


class ViT(Module):
  """ViT encoder. The defaults are big_vision's ViT; the fields make it CLIP's, DINOv2's, AIMv2's.

  Attributes:
    width, depth, hidden, heads, patch: sizes (see `decode_variant`).
    stem: "patch", a linear map of each patch, or "conv" (see `ConvStem`; few steps from scratch).
    stem_blocks: residual convolutions of a "conv" stem. patch_bias: bias of the linear map.
    posemb: "learn", "sincos2d", "sincos2d_aim" (see `layers.posemb`) or "none".
    posemb_std: of a learned table at the start; 0 = width ** -0.5, the reference's, which is small
      beside the patches: fine for long training, slow to tell places apart in a short one.
    resample: method for a grid that is not the table's (`layers.posemb.METHODS`), outside training.
    cls: a class token in front (pool "tok" has one anyway). cls_posemb: with a position of its own.
      keep_cls: it stays in front of the patches that come out.
    patch_norm, pre_norm: a norm of the patches before, of all tokens after the positions.
    final_norm: "tokens", "pooled" for a norm of the pooled token only (CLIP), or "none".
    taps: numbers of layers (0 = the embeddings) whose hidden states come out, one after the other
      on the last axis, in place of the last ones; only with `final_norm` and `pool` "none".
    norm, eps, act, gated, bias, out_bias, mlp_bias, layer_scale, qk_norm, parallel: of the layers
      (`blocks.LayerSpec`), and `qk_joint`, `qk_eps`; `norm`, `eps`, `act` of the other parts too.
    last_norm: kind of the norm at the end; "" = `norm`.
    head_dim: of their attention; 0 = width / heads.
    pool: "map", "probe", "gap", "tok" (class token), "first" (patch), "tok_gap" (class token and
      the mean of the patches, one after the other), "all" (the head on every token, their outputs
      one after the other) or "none".
    rep_size: width of an extra tanh layer on the pooled vector; 0 = none.
    out_dim: width of a linear head on the pooled vector; 0 = none. head_bias: its bias.
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
  patch_bias: bool = True
  posemb: str = "learn"
  posemb_std: float = 0.0
  resample: str = "linear_corners"
  cls: bool = False
  cls_posemb: bool = False
  keep_cls: bool = False
  patch_norm: bool = False
  pre_norm: bool = False
  final_norm: str = "tokens"
  taps: tuple[int, ...] = ()
  norm: str = "layer"
  eps: float = 1e-6
  act: str = "gelu_tanh"
  gated: bool = False
  bias: bool = True
  out_bias: bool | None = None
  mlp_bias: bool | None = None
  layer_scale: float = 0.0
  qk_norm: bool = False
  qk_joint: str = ""
  qk_eps: float = 0.0
  last_norm: str = ""
  parallel: bool = False
  head_dim: int = 0
  pool: str = "none"
  rep_size: int = 0
  out_dim: int = 0
  head_bias: bool = True
  mean: tuple[float, ...] = (0.5, 0.5, 0.5)
  std: tuple[float, ...] = (0.5, 0.5, 0.5)
  dropout: float = 0.0
  mode: str = "loop"
  remat: str = "none"
  dtype: jnp.dtype = jnp.float32
  param_dtype: jnp.dtype = jnp.float32

  # Whether the position table is resized to each picture's grid while running.
  resizes = False

  @property
  def has_cls(self) -> bool:
    """Whether there is a class token."""
    return self.cls or self.pool in ("tok", "tok_gap")

  @nn.nowrap
  def grid(self, height: int, width: int) -> tuple[int, int]:
    """Patch grid (h, w) of an image; pixels beyond the last whole patch are dropped."""
    return height // self.patch, width // self.patch

  @nn.compact
  def __call__(self, media: Media, *, train: bool = False) -> Features:
    """media.pixels [B, I, H, W, 3] -> patches [B, I, N, D] and, with a pool, pooled [B, I, D'].

    N counts the class token first when `keep_cls`; D is as wide as all `taps`.

    Raises:
      ValueError: `taps` with a norm or a pool, or beyond the last layer.
    """
    batch, slots, height, width, _ = media.pixels.shape
    grid = self.grid(height, width)
    x = self._embed(media.pixels.reshape(batch * slots, height, width, 3), grid)
    x = self._blocks(x, blocks.Ctx(train=train))
    if self.final_norm == "tokens":
      x = self._norm("norm", x)
    pooled = self._pool(x)
    if self.has_cls and not self.keep_cls:
      x = x[:, 1:]
    x = x.reshape(batch, slots, *x.shape[1:])
    item = jnp.broadcast_to(media.item[:, :, None], x.shape[:3])
    return Features(x, item, None if pooled is None else pooled.reshape(batch, slots, -1))

  def _blocks(self, x: jax.Array, ctx: blocks.Ctx) -> jax.Array:
    if self.taps and (self.final_norm != "none" or self.pool != "none"):
      raise ValueError("an encoder with taps has final_norm 'none' and pool 'none'")
    if self.taps and not 0 <= min(self.taps) <= max(self.taps) <= self.depth:
      raise ValueError(f"taps {self.taps} of an encoder of {self.depth} layers")
    # A group of layers ends at every tap.
    ends = sorted({*self.taps, self.depth} - {0})
    groups = tuple(((blocks.Kind(),), b - a) for a, b in zip([0, *ends], ends, strict=False))
    spec = dataclasses.replace(
      encoder_spec(self),
      qk_norm=self.qk_norm,
      qk_joint=self.qk_joint,
      qk_eps=self.qk_eps,
      parallel=self.parallel,
    )
    after = [x]
    x, _ = blocks.Stack(spec, groups, self.mode, self.remat, name="blocks")(x, ctx, after=after)
    if not self.taps:
      return x
    states = dict(zip([0, *ends], after, strict=True))
    return jnp.concatenate([states[n] for n in self.taps], axis=-1)

  def _norm(self, name: str, x: jax.Array) -> jax.Array:
    norm = norms.NORMS[self.last_norm or self.norm if name == "norm" else self.norm]
    return norm(self.eps, dtype=self.dtype, param_dtype=self.param_dtype, name=name)(x)

  def _normalise(self, pixels: jax.Array) -> jax.Array:
    if pixels.dtype != jnp.uint8:
      return pixels
    mean, std = (jnp.asarray(v, jnp.float32) * 255 for v in (self.mean, self.std))
    return (pixels.astype(jnp.float32) - mean) / std

  def _project(self, x: jax.Array) -> jax.Array:
    """Patches [B, N, p, p, 3] -> [B, N, D]."""
    shape, init = (self.patch, self.patch, 3, self.width), nn.initializers.lecun_normal()
    dtypes = dict(dtype=self.dtype, param_dtype=self.param_dtype)
    linear = dense.Linear(
      "bnpqc,pqcd->bnd", shape, bias=self.patch_bias, init=init, name="patch", **dtypes
    )
    x = linear(x)
    return self._norm("patch_norm", x) if self.patch_norm else x

  def _embed(self, pixels: jax.Array, grid: tuple[int, int]) -> jax.Array:
    p, (h, w) = self.patch, grid
    x = self._normalise(pixels)
    if self.stem == "conv":
      dtypes = dict(dtype=self.dtype, param_dtype=self.param_dtype)
      x = x[:, : h * p, : w * p].astype(self.dtype)
      x = ConvStem(self.width, p, self.stem_blocks, name="stem", **dtypes)(x)
      x = self._norm("patch_norm", x) if self.patch_norm else x
    else:
      x = self._project(patches(x, p))
    init = nn.initializers.normal(self.posemb_std or self.width**-0.5)
    if self.posemb == "learn":
      table = self.param("posemb", init, (1, h * w, self.width), self.param_dtype)
      x = x + table.astype(x.dtype)
    elif self.posemb != "none":
      x = x + jnp.asarray(posemb.TABLES[self.posemb](grid, self.width)).astype(x.dtype)
    if self.has_cls:
      shape = (1, 1, self.width)
      cls = self.param("cls", nn.initializers.zeros, shape, self.param_dtype).astype(x.dtype)
      if self.cls_posemb:
        cls = cls + self.param("cls_posemb", init, shape, self.param_dtype).astype(x.dtype)
      cls = jnp.broadcast_to(cls, (x.shape[0], 1, self.width))
      x = jnp.concatenate([cls, x], axis=1)
    return self._norm("pre_norm", x) if self.pre_norm else x

  def _pool(self, x: jax.Array, mask: jax.Array | None = None) -> jax.Array | None:
    """[B, N, D] -> [B, D'] of the tokens in `mask`, bool [B, N] (None = all)."""
    dtypes = dict(dtype=self.dtype, param_dtype=self.param_dtype)
    if self.pool == "none":
      return None
    if self.pool == "map":
      x = pool.MapHead(self.heads, self.hidden, self.act, self.eps, name="pool", **dtypes)(x, mask)
    elif self.pool == "probe":
      x = pool.ProbeHead(self.heads, self.bias, name="pool", **dtypes)(x, mask)
    elif self.pool == "gap":
      x = jnp.mean(x, axis=1, where=None if mask is None else mask[:, :, None])
    elif self.pool == "all":
      x = x.reshape(-1, self.width)
    elif self.pool == "tok_gap":
      x = jnp.concatenate([x[:, 0], jnp.mean(x[:, 1:], axis=1)], axis=-1)
    else:
      x = x[:, 0]
    if self.final_norm == "pooled":
      x = self._norm("norm", x)
    if self.rep_size:
      shape = (x.shape[-1], self.rep_size)
      x = jnp.tanh(dense.Linear("bd,de->be", shape, name="pre_logits", **dtypes)(x))
    if self.out_dim:
      shape, init = (x.shape[-1], self.out_dim), nn.initializers.zeros
      x = dense.Linear("bd,de->be", shape, bias=self.head_bias, init=init, name="head", **dtypes)(x)
    return x


STEMS = ("patch", "conv")
POSEMBS = ("learn", *posemb.TABLES, "none")
FINAL_NORMS = ("tokens", "pooled", "none")
POOLS = ("map", "probe", "gap", "tok", "first", "tok_gap", "all", "none")
