"""PaliGemma's mask codec: a VQ-VAE of 64x64 masks with 16 codes out of 128.

Geometry and names of the published file: AiT (arXiv 2301.02229), big_vision
`vae-oid.npz`; encoder 861,936 and decoder 1,123,457 parameters, codebook 128 x 512.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from bigvlm.layers.module import Module
from bigvlm.types import Batch, Outputs

CODES, WIDTH = 128, 512


def _patches(x, size: int):
  """Neighbourhoods [B, H - size + 1, W - size + 1, size * size * C] of x [B, H, W, C]."""
  h, w = x.shape[1] - size + 1, x.shape[2] - size + 1
  return jnp.concatenate([x[:, i : i + h, j : j + w] for i in range(size) for j in range(size)], -1)


class Conv(Module):
  """torch's Conv2d: 1x1, 3x3 (padding 1), or 4x4 (stride 2, padding 1), as one matrix product.

  XLA's own convolutions are several times slower on a CPU for so few channels.
  """

  features: int
  size: int
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x):
    size, c = self.size, x.shape[-1]
    shape = (size, size, c, self.features)
    kernel = self.param("kernel", nn.initializers.he_normal(), shape).astype(self.dtype)
    bias = self.param("bias", nn.initializers.zeros, (self.features,)).astype(self.dtype)
    x = x.astype(self.dtype)
    if size > 1:
      x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    if size == 4:  # a 4x4 window with stride 2 is a 2x2 window of 2x2 blocks with stride 1
      b, h, w, _ = x.shape
      x = x.reshape(b, h // 2, 2, w // 2, 2, c).swapaxes(2, 3).reshape(b, h // 2, w // 2, 4 * c)
      kernel = kernel.reshape(2, 2, 2, 2, c, -1).swapaxes(1, 2)
      size = 2
    if size > 1:
      x = _patches(x, size)
    return x @ kernel.reshape(x.shape[-1], -1) + bias


class ConvTranspose(Module):
  """torch's ConvTranspose2d, 4x4, stride 2, padding 1: [B, H, W, C] to [B, 2H, 2W, features].

  `kernel` [4, 4, features, C], as flax keeps it with `transpose_kernel=True`.
  """

  features: int
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x):
    b, h, w, c = x.shape
    init = nn.initializers.variance_scaling(8.0, "fan_in", "normal", in_axis=-1, out_axis=-2)
    kernel = self.param("kernel", init, (4, 4, self.features, c)).astype(self.dtype)
    bias = self.param("bias", nn.initializers.zeros, (self.features,)).astype(self.dtype)
    # Each input pixel gives a 4x4 patch; patches are 2 apart, so four of them overlap everywhere.
    # In 2x2 blocks: block (i + p, j + q) of the padded output gets part (p, q) of input (i, j).
    kernel = kernel.reshape(2, 2, 2, 2, self.features, c).transpose(5, 0, 2, 1, 3, 4)
    x = x.astype(self.dtype) @ kernel.reshape(c, -1)
    x = x.reshape(b, h, w, 2, 2, 4 * self.features)
    pads = ((1, 0), (0, 1))
    out = sum(
      jnp.pad(x[:, :, :, p, q], ((0, 0), pads[1 - p], pads[1 - q], (0, 0)))
      for p in range(2)
      for q in range(2)
    )
    out = out.reshape(b, h + 1, w + 1, 2, 2, self.features).swapaxes(2, 3)
    out = out.reshape(b, 2 * h + 2, 2 * w + 2, self.features)
    return out[:, 1:-1, 1:-1] + bias


class Residual(nn.Module):
  """x + conv1x1(relu(conv3x3(relu(conv3x3(x))))), 128 channels."""

  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x):
    y = nn.relu(Conv(128, 3, self.dtype, name="conv0")(x))
    y = nn.relu(Conv(128, 3, self.dtype, name="conv1")(y))
    return x + Conv(128, 1, self.dtype, name="conv2")(y)


class Encoder(nn.Module):
  """Masks [B, 64, 64, 1] in [-1, 1] to [B, 4, 4, 512]."""

  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x):
    for i, features in enumerate((16, 32, 64, 128)):
      x = nn.relu(Conv(features, 4, self.dtype, name=f"down{i}")(x))
    for i in range(2):
      x = Residual(self.dtype, name=f"res{i}")(x)
    return Conv(WIDTH, 1, self.dtype, name="out")(x)


class Decoder(nn.Module):
  """Codebook vectors [B, 4, 4, 512] to masks [B, 64, 64, 1], about -1..1."""

  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x):
    x = nn.relu(Conv(128, 1, self.dtype, name="in")(x))
    for i in range(2):
      x = Residual(self.dtype, name=f"res{i}")(x)
    for i, features in enumerate((128, 64, 32, 16)):
      x = nn.relu(ConvTranspose(features, self.dtype, name=f"up{i}")(x))
    return Conv(1, 1, self.dtype, name="out")(x)


class MaskCodec(Module):
  """The VQ-VAE. Reads `batch.extra["mask"]` [B, 64, 64, 1] in [0, 1].

  Heads: `recon` [B, 64, 64, 1], `target` (the masks in [-1, 1]), `z` [B, 16, 512] before
  quantisation, `code` int32 [B, 16], `chosen` [B, 16, 512] the vectors of the codes and `far`
  [B, 16, 128] the squared distances to all of them. The gradient of `recon` passes the
  quantisation unchanged (straight through).
  """

  dtype: jnp.dtype = jnp.float32

  def setup(self):
    self.encoder = Encoder(self.dtype)
    self.decoder = Decoder(self.dtype)
    self.codebook = self.param("codebook", _corners, (CODES, WIDTH))

  def encode(self, masks):
    """Masks [B, 64, 64, 1] in [0, 1] to (`z` float32 [B, 16, 512], `code` int32 [B, 16])."""
    z = self.encoder(2 * (masks - 0.5)).reshape(masks.shape[0], -1, WIDTH).astype(jnp.float32)
    return z, distances(z, self.codebook).argmin(-1)

  def decode(self, vectors):
    """Codebook vectors [B, 16, 512] to masks [B, 64, 64, 1]."""
    return self.decoder(vectors.reshape(vectors.shape[0], 4, 4, WIDTH)).astype(jnp.float32)

  def __call__(self, batch: Batch, *, train: bool = False) -> Outputs:
    """Encodes, quantises and decodes; the same in training and out of it."""
    del train
    masks = batch.extra["mask"].astype(jnp.float32)
    z, code = self.encode(masks)
    chosen, far = self.codebook[code], distances(z, self.codebook)
    recon = self.decode(z + jax.lax.stop_gradient(chosen - z))
    heads = dict(recon=recon, target=2 * masks - 1, z=z, code=code, chosen=chosen, far=far)
    return Outputs(heads=heads)


def _corners(key, shape, dtype=jnp.float32):
  """The codebook at the start: the 2^7 corners of a cube in 7 random directions of the space.

  Codes drawn at random die at once: all vectors of an untrained encoder are nearest to the same
  few. Of a cube's corners each direction decides one bit, and both its values stay in use.
  """
  bits = max(1, (shape[0] - 1).bit_length())
  corners = (jnp.arange(shape[0])[:, None] >> jnp.arange(bits)) % 2 * 2.0 - 1
  directions = nn.initializers.orthogonal()(key, (bits, shape[1]), dtype)
  return (corners @ directions).astype(dtype)


def distances(z, codebook):
  """Squared distances [..., 128] of vectors [..., 512] to the codebook [128, 512]."""
  dots = jnp.einsum("...d,kd->...k", z, codebook)
  return jnp.square(z).sum(-1, keepdims=True) - 2 * dots + jnp.square(codebook).sum(-1)


def _names() -> list[tuple[str, str]]:
  """Pairs of (name in this tree, name in the published file) of all convolutions."""
  out = [(f"encoder/down{i}", f"encoder.{2 * i}") for i in range(4)] + [
    ("encoder/out", "encoder.10")
  ]
  out += [("decoder/in", "decoder.0"), ("decoder/out", "decoder.12")]
  out += [(f"decoder/up{i}", f"decoder.{4 + 2 * i}") for i in range(4)]
  for side, first in (("encoder", 8), ("decoder", 2)):
    for i in range(2):
      out += [(f"{side}/res{i}/conv{j}", f"{side}.{first + i}.net.{2 * j}") for j in range(3)]
  return out


def load_published(arrays) -> dict:
  """The flax parameter tree of a published file's arrays (or of `np.load`'s result).

  Raises:
    KeyError: an array is missing (named).
  """
  tree: dict = {"codebook": np.asarray(arrays["_vq_vae._embedding"])}
  for ours, theirs in _names():
    *path, last = ours.split("/")
    node = tree
    for part in path:
      node = node.setdefault(part, {})
    kernel = np.transpose(np.asarray(arrays[f"{theirs}.weight"]), (2, 3, 1, 0))
    node[last] = {"kernel": kernel, "bias": np.asarray(arrays[f"{theirs}.bias"])}
  return tree


def to_published(params) -> dict[str, np.ndarray]:
  """The inverse of `load_published`: arrays by the published names, for `np.savez`."""
  out = {"_vq_vae._embedding": np.asarray(params["codebook"])}
  for ours, theirs in _names():
    node = params
    for part in ours.split("/"):
      node = node[part]
    out[f"{theirs}.weight"] = np.transpose(np.asarray(node["kernel"]), (3, 2, 0, 1))
    out[f"{theirs}.bias"] = np.asarray(node["bias"])
  return out
