"""Packed patches: every picture, frame and window is what it is alone; squares become tokens."""

import functools

import jax
import numpy as np
import pytest

from bigvlm import build
from bigvlm.models.connectors import merger
from bigvlm.models.vision import packed
from bigvlm.types import Item, Media

PATCH, BLOCK, GRIDS = 4, 2, ((1, 4, 6), (3, 2, 2), (1, 6, 4))


def encoder(**fields):
  sizes = dict(width=16, depth=2, hidden=24, heads=2, patch=PATCH, block=BLOCK)
  return build.encoder(dict(kind="packed", **sizes) | fields)


def picture(grid, seed, block=BLOCK):
  """float32 patches [t * h * w, P * P * 3] and their places."""
  patches = np.random.default_rng(seed).standard_normal((int(np.prod(grid)), PATCH**2 * 3))
  return patches.astype(np.float32), packed.places(grid, block)


def row(pictures, length=64):
  """Pictures one after the other in a row of patches, padded with noise."""
  shape = (1, length, pictures[0][0].shape[1])
  patches = np.random.default_rng(9).standard_normal(shape).astype(np.float32)
  pos, item = np.zeros((1, length, 3), np.int32), np.zeros((1, length), np.int32)
  at = 0
  for n, (found, places) in enumerate(pictures):
    here = slice(at, at + len(found))
    patches[0, here], pos[0, here], item[0, here] = found, places, n + 1
    at += len(found)
  return Media(None, item, patches, pos)


@pytest.fixture(scope="module")
def pictures():
  return [picture(grid, seed) for seed, grid in enumerate(GRIDS)]


@pytest.fixture(scope="module")
def params(pictures):
  return encoder().init(jax.random.key(0), row(pictures))["params"]


@functools.partial(jax.jit, static_argnums=0)
def apply(module, params, media):
  return module.apply({"params": params}, media).x[0, 0]


def run(module, params, media):
  return np.asarray(apply(module, params, media))


def test_a_picture_is_what_it_is_alone(pictures, params):
  together = run(encoder(), params, row(pictures))
  at = 0
  for one in pictures:
    alone = run(encoder(), params, row([one]))[: len(one[0])]
    np.testing.assert_allclose(together[at : at + len(alone)], alone, rtol=1e-5, atol=1e-5)
    at += len(alone)


def test_frames_of_a_video_do_not_see_each_other(pictures, params):
  patches, places = pictures[1]
  other = np.where(places[:, :1] == 1, 3 * patches, patches)
  before, after = (run(encoder(), params, row([(x, places)])) for x in (patches, other))
  changed = (before != after).any(axis=1)[: len(patches)]
  np.testing.assert_array_equal(changed, places[:, 0] == 1)


@pytest.mark.parametrize("windows, everywhere", [((2,), False), ((2, 0), True)])
def test_windows(pictures, windows, everywhere):
  patches, places = pictures[0]
  other = np.where((places[:, 1:] < 2).all(axis=1)[:, None], 3 * patches, patches)
  module = encoder(windows=windows)
  params = module.init(jax.random.key(0), row(pictures))["params"]
  before, after = (run(module, params, row([(x, places)])) for x in (patches, other))
  changed = (before != after).any(axis=1)[: len(patches)]
  wanted = (places[:, 1:] < 2).all(axis=1) | everywhere
  np.testing.assert_array_equal(changed, wanted)


def test_order_within_a_picture_does_not_matter(pictures, params):
  patches, places = pictures[2]
  order = np.random.default_rng(0).permutation(len(patches))
  straight = run(encoder(), params, row([(patches, places)]))
  mixed = run(encoder(), params, row([(patches[order], places[order])]))
  np.testing.assert_allclose(mixed[: len(order)], straight[order], rtol=1e-5, atol=1e-5)


def test_pixels_are_the_patches_of_two_equal_frames(params):
  module = encoder(frames=2)
  pixels = np.random.default_rng(0).integers(0, 256, (1, 2, 11, 18, 3), np.uint8)
  items = np.array([[1, 2]], np.int32)
  params = module.init(jax.random.key(0), Media(pixels, items))["params"]
  found = run(module, params, Media(pixels, items))
  _, places = picture((1, 2, 4), 0)
  parts = []
  for slot in range(2):
    cut = pixels[0, slot, :8, :16].reshape(2, PATCH, 4, PATCH, 3).transpose(0, 2, 1, 3, 4)
    cut = cut[places[:, 1], places[:, 2]].reshape(8, -1) / np.float32(127.5) - 1
    parts.append((np.concatenate([cut, cut], axis=1).astype(np.float32), places))
  np.testing.assert_allclose(found, run(module, params, row(parts))[:16], rtol=1e-4, atol=1e-5)


def test_grids_that_blocks_do_not_fill_are_refused():
  with pytest.raises(ValueError, match="3x4 patches are no squares of 2x2"):
    packed.places((1, 3, 4), 2)


@pytest.mark.parametrize("side, wanted", [(2, [0, 1, 2, 3]), (3, [4]), (4, [5, 6, 9, 10])])
def test_the_middle_of_a_square(side, wanted):
  weights = packed.middle(side)
  assert np.flatnonzero(weights).tolist() == wanted
  np.testing.assert_allclose(weights.sum(), 1)


def test_squares_become_their_middle_where_their_side_says_so(params):
  module, side = encoder(merges=3), {1: 2, 2: 1, 3: 3}
  grids = {1: (1, 2, 4), 2: (1, 1, 3), 3: (2, 3, 3)}
  plain = row([picture(grid, n, side[n]) for n, grid in grids.items()])
  sides = np.vectorize(lambda n: side.get(n, 1))(plain.item)
  media = plain.replace(pos=np.concatenate([plain.pos, sides[..., None]], axis=-1))
  before, after = run(encoder(), params, plain), run(module, params, media)
  np.testing.assert_allclose(after[[0, 4]], before[:8].reshape(2, 4, -1).mean(axis=1), atol=1e-6)
  np.testing.assert_array_equal(after[8:11], before[8:11])
  np.testing.assert_array_equal(after[[11, 20]], before[[15, 24]])


def test_rows_of_the_merger():
  plain, halves = merger.Merger(8, merge=2), merger.Merger(8)
  items = [Item(0, (2, 4, 2)), Item(16, (1, 2, 6))]
  assert [r.tolist() for r in plain.rows(items)] == [[0, 1, 2, 3], [4, 5, 6]]
  items = [Item(0, (1, 2, 2)), Item(4, (2, 2, 4), video=True, merge=2, keep=(0, 3))]
  assert [r.tolist() for r in halves.rows(items)] == [[0, 1, 2, 3], [4, 16]]
