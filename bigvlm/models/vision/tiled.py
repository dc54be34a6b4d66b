"""ViT over all tiles of a picture at once, then gated layers over them: Llama 3.2-Vision.

The Llama 3 Herd of Models (arXiv 2407.21783, section 7). Reference: transformers'
`MllamaVisionModel`.
"""

import dataclasses
import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from bigvlm.layers import blocks, norms
from bigvlm.models.vision import vit
from bigvlm.types import Features, Media


class TiledViT(vit.ViT):
  """ViT whose tokens see those of every tile of their picture.

  A picture takes `tiles` slots, one behind the other, present or not. Fields and parameters are
  those of `ViT` with a class token, without a table `posemb`: positions are `pos` [N, D] and, for
  each way of cutting a picture, `tile_pos` [ways, tiles, N, D], mixed by a gate; `pre_tile` and
  `post_tile` [ways, tiles, D], each with a gate, tell tiles apart before and after `blocks`. Then
  come `depth_global` gated layers, `globals`.

  Attributes:
    tiles: slots of a picture.
    ways: ways of cutting a picture, with 0 = no picture.
    depth_global: number of the gated layers.
    keep: numbers of layers, from 0, whose outputs follow the last one on the last axis: of every
      feature all of theirs side by side.
    pad: tokens of a tile are padded to a multiple of this.
    outer_eps: epsilon of the norms before and after `blocks`.
  """

  tiles: int = 4
  ways: int = 9
  depth_global: int = 8
  keep: tuple[int, ...] = ()
  pad: int = 8
  outer_eps: float = 1e-5

  # Its tables are for one size of tiles, and nothing resizes them.
  resizes, fixed = True, True

  @nn.compact
  def __call__(self, media: Media, *, train: bool = False) -> Features:
    """media.pixels [B, I * tiles, H, W, 3] -> [B, I * tiles, N, D * (1 + len(keep))].

    `media.pos` [B, I * tiles, 2] has the way in which a slot's picture was cut, and 1 for a slot
    that holds a tile; None = pixels are [B, I, H, W, 3], pictures of one tile each, way 1. The
    class token comes first.

    Raises:
      ValueError: the slots are not those of whole pictures, or a layer to keep is not there.
    """
    media = self._spread(media) if media.pos is None else media
    batch, slots, height, width, _ = media.pixels.shape
    if slots % self.tiles:
      raise ValueError(f"there are {slots} slots, but a picture takes {self.tiles}")
    if self.keep and not 0 <= min(self.keep) <= max(self.keep) < self.depth:
      raise ValueError(f"keep {self.keep} of an encoder of {self.depth} layers")
    count = batch * slots // self.tiles
    pos = media.pos.reshape(count, self.tiles, 2)
    way, real = pos[:, 0, 0], pos[:, :, 1] > 0
    h, w = self.grid(height, width)
    x = self._normalise(media.pixels.reshape(batch * slots, height, width, 3))
    x = self._project(vit.patches(x, self.patch)).reshape(count, self.tiles, h * w, self.width)
    x = self._positions(self._tile("pre_tile", x, way), way)
    x = self._outer_norm("pre_norm", x)
    tokens = x.shape[2]
    x = jnp.pad(x, ((0, 0), (0, 0), (0, -tokens % self.pad), (0, 0)))
    # Only padding is hidden, and only from padding.
    empty = ~real[:, :, None] | (jnp.arange(x.shape[2]) >= tokens)
    empty = empty.reshape(count, -1)
    see = ~(empty[:, :, None] & empty[:, None])
    x, kept = self._layers(x, blocks.Ctx(masks={0: see[:, None]}, train=train), way)
    out = x[:, :, :tokens]
    if kept:
      kept = jnp.stack(kept, axis=-1)[:, :, :tokens]
      out = jnp.concatenate([out, kept.reshape(*out.shape[:3], -1)], axis=-1)
    out = out.reshape(batch, slots, tokens, -1)
    return Features(out, jnp.broadcast_to(media.item[:, :, None], out.shape[:3]))

  def _spread(self, media: Media) -> Media:
    """Pictures of one tile, with the slots that those of several would fill."""

    def fill(x):  # [B, I, ...] -> [B, I * tiles, ...]
      pad = ((0, 0), (0, 0), (0, self.tiles - 1), *((0, 0),) * (x.ndim - 2))
      return jnp.pad(x[:, :, None], pad).reshape(x.shape[0], -1, *x.shape[2:])

    one = jnp.ones_like(media.item)
    way, real = jnp.repeat(one, self.tiles, axis=1), fill(one)
    pixels = fill(self._normalise(media.pixels))
    return Media(pixels, fill(media.item), None, jnp.stack([way, real], axis=-1))

  def _gate(self, name: str) -> jax.Array:
    gate = self.param(name, nn.initializers.zeros, (1,), self.param_dtype)
    return jnp.tanh(gate.astype(jnp.float32)).astype(self.dtype)

  def _outer_norm(self, name: str, x: jax.Array) -> jax.Array:
    dtypes = dict(dtype=self.dtype, param_dtype=self.param_dtype)
    return norms.NORMS[self.norm](self.outer_eps, name=name, **dtypes)(x)

  def _tile(self, name: str, x: jax.Array, way: jax.Array) -> jax.Array:
    """x [count, tiles, N, D] plus what tells its tiles apart."""
    init = nn.initializers.normal(self.width**-0.5)
    shape = (self.ways, self.tiles, self.width)
    table = self.param(name, init, shape, self.param_dtype).astype(x.dtype)
    return x + self._gate(f"{name}_gate") * jnp.take(table, way, axis=0)[:, :, None]

  def _positions(self, x: jax.Array, way: jax.Array) -> jax.Array:
    """[count, tiles, h * w, D] -> [count, tiles, N, D], with class tokens and positions."""
    init, shape = nn.initializers.normal(self.width**-0.5), (1, 1, self.width)
    cls = self.param("cls", init, shape, self.param_dtype).astype(x.dtype)
    cls = jnp.broadcast_to(cls[None], (*x.shape[:2], 1, self.width))
    x = jnp.concatenate([cls, x], axis=2)
    tokens, gate = x.shape[2], self._gate("pos_gate")
    pos = self.param("pos", init, (tokens, self.width), self.param_dtype)
    shape = (self.ways, self.tiles, tokens, self.width)
    tile_pos = self.param("tile_pos", init, shape, self.param_dtype)
    x = x + (1 - gate) * pos.astype(x.dtype)
    return x + gate * jnp.take(tile_pos, way, axis=0).astype(x.dtype)

  def _layers(self, x: jax.Array, ctx: blocks.Ctx, way: jax.Array) -> tuple[jax.Array, list]:
    """Both stacks over x [count, tiles, N, D]: the same of the last layer, and of those kept."""
    shape, flat = x.shape, (x.shape[0], -1, self.width)
    spec = vit.encoder_spec(self)
    ends = sorted({*(n + 1 for n in self.keep), self.depth})
    groups = tuple(((blocks.Kind(),), b - a) for a, b in zip([0, *ends], ends, strict=False))
    after: list[jax.Array] = []
    stack = blocks.Stack(spec, groups, self.mode, self.remat, name="blocks")
    x, _ = stack(x.reshape(flat), ctx, after=after)
    states = dict(zip(ends, after, strict=True))
    kept = [states[n + 1].reshape(shape) for n in self.keep]
    x = self._tile("post_tile", self._outer_norm("post_norm", x).reshape(shape), way)
    gated = dataclasses.replace(spec, cross=blocks.Cross(gate_init=math.pi / 4))
    groups = (((blocks.Kind(tanh_gated=True),), self.depth_global),)
    stack = blocks.Stack(gated, groups, self.mode, self.remat, name="globals")
    x, _ = stack(x.reshape(flat), ctx)
    return x.reshape(shape), kept
