"""Packed patches of transformers' inputs: shapes of a bucket, and inputs that do not fit."""

from types import SimpleNamespace

import jax
import numpy as np
import pytest

from bigvlm import build
from bigvlm.hub import decoding
from bigvlm.models.vision import packed

IMAGE, VIDEO, PATCH = 3, 4, 4


def model(media, merge=2, **encoder):
  """A model as far as its inputs need it: no parameters."""
  sizes = dict(width=8, depth=1, hidden=8, heads=2)
  cfg = dict(
    kind="vlm",
    encoders=dict(image=dict(kind="packed", patch=PATCH, **sizes) | encoder),
    connector=dict(kind="merger", merge=merge),
    decoder=dict(kind="decoder", vocab=64, kv_heads=1, head_dim=4, **sizes),
  )
  options = dict(media=media, image_token=IMAGE, video_token=VIDEO)
  options |= dict(positions="mrope") if media == "grids" else {}
  return SimpleNamespace(module=build.model(cfg), system=SimpleNamespace(options=options))


def qwen(**more):
  return model("grids", frames=2, block=2, **more)


def inputs(images, videos=(), length=24):
  """One row with the placeholders of all grids."""
  ids = [5]
  for token, grids in ((IMAGE, images), (VIDEO, videos)):
    for grid in grids:
      ids += [token] * (int(np.prod(grid)) // 4) + [6]
  ids += [7] * (length - len(ids))
  out = dict(input_ids=np.array([ids]), attention_mask=np.ones((1, length), int))
  for name, grid_name, grids in (
    ("pixel_values", "image_grid_thw", images),
    ("pixel_values_videos", "video_grid_thw", videos),
  ):
    if grids:
      count = sum(int(np.prod(grid)) for grid in grids)
      values = np.random.default_rng(0).standard_normal((count, 2 * 3 * PATCH**2))
      out |= {name: values.astype(np.float32), grid_name: np.array(grids)}
  return out


def shapes(batch):
  return jax.tree.map(lambda x: (x.shape, x.dtype), batch)


def test_pictures_of_a_bucket_have_one_shape():
  found = [
    decoding.vlm_batch(qwen(), inputs(images, videos), False)
    for images, videos in (
      ([(1, 2, 4)], []),
      ([(1, 6, 4), (1, 2, 2)], []),
      ([(1, 4, 2)], [(2, 2, 4)]),
    )
  ]
  assert shapes(found[0]) == shapes(found[1]) == shapes(found[2])


def test_a_patch_keeps_its_pixels():
  given = inputs([(1, 2, 4)])
  media = decoding.vlm_batch(qwen(), given, False).media["image"]
  stored = given["pixel_values"].reshape(8, 3, 2, PATCH, PATCH)
  found = media.patches[0, :8].reshape(8, 2, PATCH, PATCH, 3)
  np.testing.assert_array_equal(found, stored.transpose(0, 2, 3, 4, 1))
  np.testing.assert_array_equal(media.pos[0, :8], packed.places((1, 2, 4), 2))
  assert media.item[0].tolist() == [1] * 8 + [0] * 56


@pytest.mark.parametrize(
  "change, message",
  [
    (dict(image_grid_thw=None), "the inputs have pixel_values but lack image_grid_thw"),
    (dict(image_grid_thw=np.array([[1, 2, 2]])), "has 8 patches, but image_grid_thw says 4"),
    (dict(image_grid_thw=np.array([[2, 1, 4]])), "1x4 patches are no squares of 2x2"),
    (dict(pixel_values=np.zeros((8, 5), np.float32)), r"must be \[N, 96\] patches, not \[8, 5\]"),
    (dict(mm_token_type_ids=np.zeros((1, 24), int)), "mm_token_type_ids are not 1 at the image"),
    (dict(position_ids=np.zeros((2, 1, 24), int)), r"position_ids is \[2, 1, 24\]"),
  ],
)
def test_inputs_that_do_not_fit(change, message):
  with pytest.raises(ValueError, match=message):
    decoding.vlm_batch(qwen(), inputs([(1, 2, 4)]) | change, False)


def test_positions_of_the_inputs_are_taken():
  places = np.random.default_rng(0).integers(0, 9, (3, 1, 24))
  for given in (places, np.concatenate([np.arange(24).reshape(1, 1, 24), places])):
    batch = decoding.vlm_batch(qwen(), inputs([(1, 2, 4)]) | dict(position_ids=given), False)
    np.testing.assert_array_equal(batch.text.positions, np.moveaxis(places, 0, -1))


def sized(images, sizes):
  side = np.array(sizes).max(axis=0)
  ids = [token for h, w in sizes for token in [IMAGE] * (h // 8 * (w // 8)) + [6]]
  pixels = np.random.default_rng(0).standard_normal((images, 3, *side)).astype(np.float32)
  return dict(input_ids=np.array([ids]), pixel_values=pixels, image_sizes=np.array(sizes))


def test_pixels_beyond_a_size_are_left_out():
  given = sized(2, [(8, 16), (16, 8)])
  media = decoding.vlm_batch(model("sizes", block=2), given, False).media["image"]
  assert media.item[0].tolist() == [1] * 8 + [2] * 8 + [0] * 48
  second = given["pixel_values"][1, :, 4:8, 4:8].transpose(1, 2, 0)  # Row 1, column 1: the fourth.
  np.testing.assert_array_equal(media.patches[0, 11].reshape(PATCH, PATCH, 3), second)


@pytest.mark.parametrize(
  "given, message",
  [
    (sized(1, [(8, 12)]), "image_sizes has 8x12, which is not whole squares of 8"),
    (sized(1, [(8, 8)]) | dict(image_sizes=np.array([[8, 16]])), "are not of pixel_values"),
  ],
)
def test_sizes_that_do_not_fit(given, message):
  with pytest.raises(ValueError, match=message):
    decoding.vlm_batch(model("sizes", block=2), given, False)


@pytest.mark.parametrize(
  "change, message",
  [
    (dict(video_merge_sizes=None), "have pixel_values_videos but lack video_merge_sizes"),
    (dict(video_merge_sizes=np.array([9])), "video_merge_sizes must be 1 numbers up to 2"),
    (dict(video_compression_mask=np.ones(3)), "has 3 entries for 4 tokens of videos"),
    (dict(video_compression_mask=np.array([1, 0, 1, 1])), "4 image placeholders"),
  ],
)
def test_merged_videos_that_do_not_fit(change, message):
  given = inputs([], [(2, 2, 4)]) | dict(video_merge_sizes=np.array([2])) | change
  given["pixel_values_videos"] = given["pixel_values_videos"][:, : 3 * PATCH**2]
  with pytest.raises(ValueError, match=message):
    decoding.vlm_batch(model("merged_grids", merge=1, merges=2), given, False)
