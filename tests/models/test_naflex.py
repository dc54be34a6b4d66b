"""NaFlex: patches of pictures of any shape, padded or packed, are what each picture gives alone."""

import jax
import numpy as np
import pytest

from bigvlm import build
from bigvlm.layers import posemb
from bigvlm.types import Media, to_batch

PATCH, GRIDS = 4, ((2, 3), (5, 1), (3, 3))


def encoder(**fields):
  sizes = dict(width=16, depth=2, hidden=24, heads=2, patch=PATCH, table=(3, 4), posemb_std=1.0)
  return build.encoder(dict(kind="naflex", **sizes) | fields)


def picture(grid, seed):
  """float32 patches [h * w, P * P * 3] and their positions."""
  patches = np.random.default_rng(seed).standard_normal((grid[0] * grid[1], PATCH**2 * 3))
  pos = np.stack(np.mgrid[: grid[0], : grid[1]], axis=-1).reshape(-1, 2)
  return patches.astype(np.float32), pos.astype(np.int32)


def row(pictures, length):
  """Pictures one after the other in a row of patches, padded with noise."""
  padding = np.random.default_rng(9).standard_normal((1, length, PATCH**2 * 3)).astype(np.float32)
  pos, item = np.zeros((1, length, 2), np.int32), np.zeros((1, length), np.int32)
  at = 0
  for n, (patches, positions) in enumerate(pictures):
    here = slice(at, at + len(patches))
    padding[0, here], pos[0, here], item[0, here] = patches, positions, n + 1
    at += len(patches)
  return Media(None, item, padding, pos)


@pytest.fixture(scope="module")
def pictures():
  return [picture(grid, seed) for seed, grid in enumerate(GRIDS)]


@pytest.fixture(scope="module")
def params(pictures):
  return encoder(pool="map").init(jax.random.key(0), row(pictures, 24))["params"]


def run(module, params, media):
  return jax.jit(lambda p, m: module.apply({"params": p}, m))(params, media)


def test_padding_does_not_reach_the_pooled_vector(pictures, params):
  module = encoder(pool="map")
  alone = run(module, params, row(pictures[:1], 6))
  padded = run(module, params, row(pictures[:1], 24))
  np.testing.assert_allclose(padded.pooled, alone.pooled, atol=1e-5)
  np.testing.assert_allclose(padded.x[0, 0, :6], alone.x[0, 0], atol=1e-5)


def test_packed_pictures_are_what_they_are_alone(pictures, params):
  module = encoder(pool="none")
  params = {k: v for k, v in params.items() if k != "pool"}
  packed = run(module, params, row(pictures, 24))
  assert packed.item[0, 0].tolist() == [1] * 6 + [2] * 5 + [3] * 9 + [0] * 4
  at = 0
  for one in pictures:
    alone = run(module, params, row([one], len(one[0])))
    np.testing.assert_allclose(packed.x[0, 0, at : at + len(one[0])], alone.x[0, 0], atol=1e-5)
    at += len(one[0])


@pytest.mark.parametrize("dtype", [np.float32, np.uint8])
def test_whole_pictures_are_their_patches(params, dtype):
  module, (h, w) = encoder(pool="gap"), (2, 5)
  params = {k: v for k, v in params.items() if k != "pool"}
  pixels = np.random.default_rng(0).integers(0, 256, (2, 1, h * PATCH, w * PATCH, 3)).astype(dtype)
  patches = pixels.reshape(2, h, PATCH, w, PATCH, 3).transpose(0, 1, 3, 2, 4, 5)
  patches = patches.reshape(2, h * w, -1)
  pos = np.stack(np.mgrid[:h, :w], axis=-1).reshape(1, -1, 2).repeat(2, axis=0)
  whole = run(module, params, Media(pixels, np.ones((2, 1), np.int32)))
  cut = run(module, params, Media(None, np.ones((2, h * w), np.int32), patches, pos))
  np.testing.assert_allclose(cut.x, whole.x, atol=1e-5)
  np.testing.assert_allclose(cut.pooled, whole.pooled, atol=1e-5)


def test_the_table_is_resized_as_it_is_on_the_host():
  for new in (1, 3, 7, 11):
    rows = posemb.bilinear_antialias_at(np.arange(new), np.full(new, new), 5)
    np.testing.assert_allclose(rows, posemb.METHODS["bilinear_antialias"](new, 5), atol=1e-6)


def test_patches_of_a_processor_become_media(pictures):
  media = row(pictures, 24)
  arrays = dict(image=media.patches, image_pos=media.pos, image_item=media.item)
  batch = to_batch(arrays)
  assert batch.media["image"].pixels is None and not batch.extra
  np.testing.assert_array_equal(batch.media["image"].pos, media.pos)


def test_fields_that_only_vit_has_are_refused(pictures):
  with pytest.raises(ValueError, match="no class token"):
    encoder(pool="tok").init(jax.random.key(0), row(pictures, 24))
