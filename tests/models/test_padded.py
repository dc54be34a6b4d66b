"""Pictures padded to one size: each gives what it gives alone, to the encoder and the resampler."""

import jax
import numpy as np
import pytest

from bigvlm import build
from bigvlm.layers import posemb
from bigvlm.models.connectors import pixel_shuffle, resampler
from bigvlm.types import Features, Item, Media

PATCH, TABLE = 4, (5, 5)


def encoder():
  sizes = dict(width=16, depth=2, hidden=24, heads=2, patch=PATCH, table=TABLE, posemb_std=1.0)
  return build.encoder(dict(kind="padded", **sizes))


def connector():
  sizes = dict(latents=3, depth=2, heads=2, kv_heads=1, head_dim=6, hidden=20)
  return resampler.Resampler(out_dim=16, **sizes, qk_norm=True)


@pytest.fixture(scope="module")
def params():
  media = Media(np.zeros((1, 1, 20, 20, 3), np.float32), np.ones((1, 1), np.int32))
  tower = encoder().init(jax.random.key(0), media)["params"]
  feats = {"image": encoder().apply({"params": tower}, media)}
  return tower, connector().init(jax.random.key(1), feats)["params"]


def run(params, media):
  tower, rest = params
  f = encoder().apply({"params": tower}, media)
  soft = connector().apply({"params": rest}, {"image": f})
  return np.asarray(f.x), np.asarray(f.item), np.asarray(soft.x), np.asarray(soft.item)


def test_padding_is_not_seen(params):
  h, w, rng = 2, 3, np.random.default_rng(0)
  pixels = rng.standard_normal((1, 2, 4 * PATCH, 5 * PATCH, 3)).astype(np.float32)
  pos = np.full((4, 5, 2), -1, np.int32)
  pos[:h, :w] = encoder().places(h, w).reshape(h, w, 2)
  pos = np.stack([pos.reshape(-1, 2), np.zeros((20, 2), np.int32)])[None]
  item = np.array([[7, 0]], np.int32)  # And a slot without a picture.
  x, owner, soft, of = run(params, Media(pixels, item, None, pos))
  alone = Media(pixels[:, :1, : h * PATCH, : w * PATCH], item[:, :1])
  want_x, _, want_soft, _ = run(params, alone)
  got = x[0, 0].reshape(4, 5, -1)[:h, :w].reshape(h * w, -1)
  np.testing.assert_allclose(got, want_x[0, 0], atol=1e-5)
  np.testing.assert_allclose(soft[:, :3], want_soft, atol=1e-5)
  assert (owner[0, 0].reshape(4, 5)[:h, :w] == 7).all() and (owner > 0).sum() == h * w
  assert of.tolist() == [[7, 7, 7, 0, 0, 0]] and np.isfinite(soft).all()


def test_patches_look_their_positions_up_by_fractions(params):
  """Twice as many rows as the table has: two patches share one."""
  assert posemb.buckets(5, 5).tolist() == [0, 1, 2, 3, 4]
  assert posemb.buckets(10, 5).tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
  assert posemb.buckets(3, 5).tolist() == [0, 1, 3]
  assert posemb.buckets(2, 5, 4).tolist() == [0, 2, 4, 4]
  # Where rounding decides, as the reference's own edges have it.
  assert posemb.buckets(49, 28)[28] == 16 and posemb.buckets(25, 25)[4:7].tolist() == [4, 4, 6]
  assert encoder().places(2, 5).tolist() == [[y, x] for y in (0, 2) for x in range(5)]


def test_pixel_shuffle_joins_squares_row_by_row():
  module = pixel_shuffle.PixelShuffle(out_dim=8, factor=2, bias=False)
  grid = np.arange(16, dtype=np.float32).reshape(4, 4)
  x = np.stack([grid, grid + 100], axis=-1).reshape(1, 1, 16, 2)
  feats = {"image": Features(x, np.full((1, 1, 16), 3, np.int32))}
  kernel = {"linear": {"kernel": np.eye(8, dtype=np.float32)}}
  soft = module.apply({"params": kernel}, feats)
  assert soft.x[0, 1].tolist() == [2, 102, 3, 103, 6, 106, 7, 107]  # Top right.
  assert soft.item.tolist() == [[3] * 4]


def test_rows_of_tiles_and_frames():
  module = pixel_shuffle.PixelShuffle(out_dim=8, factor=2)
  tiles, frames = Item(1, (1, 4, 4), tiles=(2, 1)), Item(3, (2, 4, 4))
  assert [r.tolist() for r in module.rows([tiles, frames])] == [
    list(range(4, 12)),
    list(range(12, 20)),
  ]
  assert [len(r) for r in connector().rows([tiles, frames])] == [6, 6]
  with pytest.raises(ValueError, match="12 patches are no square of a side that 2 divides"):
    module.rows([Item(0, (1, 3, 4))])
