"""ViT on the packed patches of pictures and videos of any shape, with rotary positions.

References: transformers' `Qwen2VisionTransformerPretrainedModel` (arXiv 2409.12191),
`Qwen2_5_VisionTransformerPretrainedModel` (2502.13923), `PixtralVisionModel` (2410.07073) and
`VideoLlama3VisionModel` (2501.13106).
"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from bigvlm.layers import blocks, dense, norms, rope
from bigvlm.models.vision import vit
from bigvlm.types import Features, Media


def places(grid: tuple[int, int, int], block: int = 1) -> np.ndarray:
  """Frame, row and column, int32 [t * h * w, 3], of the patches of a grid in packed order.

  The patches of a square of `block` x `block` come one after the other.

  Raises:
    ValueError: a grid that such squares do not fill.
  """
  t, h, w = grid
  if h % block or w % block:
    raise ValueError(f"{h}x{w} patches are no squares of {block}x{block}")
  pos = np.stack(np.mgrid[:t, :h, :w], axis=-1)
  pos = pos.reshape(t, h // block, block, w // block, block, 3).transpose(0, 1, 3, 2, 4, 5)
  return pos.reshape(-1, 3).astype(np.int32)


def middle(side: int) -> np.ndarray:
  """Weights float32 [side * side] of the patches of a square, for the one in its middle.

  Those of bilinear interpolation with half-pixel centres: the innermost one, or the mean of four.
  """
  line = np.zeros(side)
  line[(side - 1) // 2 : side // 2 + 1] = 1
  line /= line.sum()
  return np.outer(line, line).reshape(-1).astype(np.float32)


class Packed(nn.Module):
  """Encoder of packed patches, which see those of their own frame or of a window in it.

  Attributes:
    width, depth, hidden, heads, patch: sizes.
    frames: of a video in one patch; a picture is its own next frame.
    block: side of the squares of patches that come one after the other (see `places`).
    patch_bias: bias of the linear map of a patch. pre_norm: a norm of the patches.
    final_norm: "tokens", or "none".
    norm, eps, act, gated, bias, out_bias, mlp_bias: see `blocks.LayerSpec`.
    rope_base, rope_share: of the rotary embedding of row and column (see `rope.Rotary`).
    windows: side in patches of the square windows of each layer of a period, 0 = the whole frame;
      the last period may be cut short.
    merges: largest side of the squares that become one patch behind the last layer; if more than 1,
      a fourth number of `media.pos` is the side of each patch's own. The new patch stands where the
      first of its square was.
    pool: "none".
    mean, std: per channel, for uint8 pixels: (x / 255 - mean) / std.
    mode, remat: see `blocks.Stack`.
  """

  width: int
  depth: int
  hidden: int
  heads: int
  patch: int
  frames: int = 1
  block: int = 1
  patch_bias: bool = False
  pre_norm: bool = False
  final_norm: str = "none"
  norm: str = "layer"
  eps: float = 1e-6
  act: str = "gelu_tanh"
  gated: bool = False
  bias: bool = True
  out_bias: bool | None = None
  mlp_bias: bool | None = None
  rope_base: float = 10_000.0
  rope_share: str = "again"
  windows: tuple[int, ...] = (0,)
  merges: int = 1
  pool: str = "none"
  mean: tuple[float, ...] = (0.5, 0.5, 0.5)
  std: tuple[float, ...] = (0.5, 0.5, 0.5)
  mode: str = "loop"
  remat: str = "none"
  dtype: jnp.dtype = jnp.float32
  param_dtype: jnp.dtype = jnp.float32

  # There is no position table that would have to fit.
  resizes = True

  @nn.nowrap
  def grid(self, height: int, width: int) -> tuple[int, int]:
    """Patch grid (h, w) of an image, whole blocks; pixels beyond them are dropped."""
    side = self.patch * self.block
    return height // side * self.block, width // side * self.block

  @nn.compact
  def __call__(self, media: Media, *, train: bool = False) -> Features:
    """Encodes `media.patches` [B, N, T * P * P * 3], or `media.pixels` [B, I, H, W, 3].

    `media.pos` int32 [B, N, 3 or 4] is frame, row and column of each patch, with `merges` the side
    of its square. Every slot of pixels is a frame by itself. Padding (item 0) is seen by none.

    Returns:
      Patches [B, 1, N, D], of I slots one after the other.
    """
    media = media if media.patches is not None else self._packed(media)
    x = self._project(media.patches)
    pos, item = media.pos, media.item
    if self.pre_norm:
      x = self._norm("pre_norm", x)
    x = self._blocks(x, blocks.Ctx(pos[..., 1:3], self._masks(pos, item), train=train))
    if self.final_norm == "tokens":
      x = self._norm("norm", x)
    if self.merges > 1:
      x = self._merged(x, pos[..., 3])
    return Features(x[:, None], item[:, None])

  def _packed(self, media: Media) -> Media:
    """Pixels as patches."""
    batch, slots, height, width, _ = media.pixels.shape
    h, w = self.grid(height, width)
    pixels = media.pixels[:, :, : h * self.patch, : w * self.patch]
    x = vit.patches(pixels.reshape(batch * slots, *pixels.shape[2:]), self.patch)
    place = places((1, h, w), self.block)
    x = x[:, place[:, 1] * w + place[:, 2]]
    x = jnp.repeat(x[:, :, None], self.frames, axis=2).reshape(batch, slots * h * w, -1)
    pos = np.tile(place, (slots, 1))
    pos[:, 0] = np.repeat(np.arange(slots), h * w)
    pos = np.concatenate([pos, np.ones_like(pos[:, :1])], axis=1)
    pos = jnp.broadcast_to(jnp.asarray(pos), (batch, *pos.shape))
    return Media(None, jnp.repeat(media.item, h * w, axis=1), x, pos)

  def _masks(self, pos: jax.Array, item: jax.Array) -> dict[int, jax.Array]:
    """What a patch sees, bool [B, 1, N, N], for every kind of window."""

    def same(x: jax.Array) -> jax.Array:
      return x[:, :, None] == x[:, None]

    frame = same(item) & same(pos[..., 0]) & (item > 0)[:, None]
    out = {}
    for side in set(self.windows):
      near = frame
      if side:
        near = near & same(pos[..., 1] // side) & same(pos[..., 2] // side)
      out[side] = near[:, None]
    return out

  def _blocks(self, x: jax.Array, ctx: blocks.Ctx) -> jax.Array:
    dim = self.width // self.heads
    rotary = rope.Rotary(sections=(dim // 4, dim // 4), share=self.rope_share)
    spec = dataclasses.replace(vit.encoder_spec(self), rotary=rotary)
    groups = blocks.periodic(tuple(map(blocks.Kind, self.windows)), self.depth)
    return blocks.Stack(spec, groups, self.mode, self.remat, name="blocks")(x, ctx)[0]

  def _norm(self, name: str, x: jax.Array) -> jax.Array:
    norm = norms.NORMS[self.norm]
    return norm(self.eps, dtype=self.dtype, param_dtype=self.param_dtype, name=name)(x)

  def _project(self, patches: jax.Array) -> jax.Array:
    """Patches [B, N, T * P * P * 3] -> [B, N, D]."""
    shape = (self.frames, self.patch, self.patch, 3)
    x = patches.reshape(*patches.shape[:2], *shape)
    if x.dtype == jnp.uint8:
      mean, std = (jnp.asarray(v, jnp.float32) * 255 for v in (self.mean, self.std))
      x = (x.astype(jnp.float32) - mean) / std
    linear = dense.Linear(
      "bntpqc,tpqcd->bnd",
      (*shape, self.width),
      bias=self.patch_bias,
      init=nn.initializers.lecun_normal(),
      dtype=self.dtype,
      param_dtype=self.param_dtype,
      name="patch",
    )
    return linear(x)

  def _merged(self, x: jax.Array, side: jax.Array) -> jax.Array:
    """Patches [B, N, D] with the first of a square of `side` [B, N] replaced by its middle."""
    out = x
    for n in range(2, self.merges + 1):
      weights = middle(n)
      y = sum(jnp.roll(x, -int(j), axis=1) * weights[j] for j in np.flatnonzero(weights))
      out = jnp.where((side == n)[..., None], y.astype(x.dtype), out)
    return out
