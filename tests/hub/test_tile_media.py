"""Tiles and videos of transformers' inputs, as pictures."""

from types import SimpleNamespace

import numpy as np
import pytest

from bigvlm.hub import tile_media

_MODEL = SimpleNamespace(
  system=SimpleNamespace(
    options=dict(pinpoints=[(8, 16), (16, 16)], image_token=5, video_token=6),
  ),
  module=SimpleNamespace(encoders={"image": SimpleNamespace(grid=lambda h, w: (h // 4, w // 4))}),
)


def _pixels(*lead):
  return np.random.default_rng(0).standard_normal((*lead, 3, 8, 8), np.float32)


def test_filled_up_and_flat_pixels_are_the_same():
  pixels, sizes = _pixels(2, 5), np.array([[10, 30], [30, 31]])
  flat = np.concatenate([pixels[0, :3], pixels[1]])
  both = [tile_media.tiled(_MODEL, dict(pixel_values=x, image_sizes=sizes)) for x in (pixels, flat)]
  for a, b in zip(*both, strict=True):
    assert a.item == b.item
    np.testing.assert_array_equal(a.media["image"], b.media["image"])
  assert [p.item.tiles for p in both[0]] == [(1, 2), (2, 2)]


def test_several_pictures_in_a_prompt_are_not_cut():
  given = dict(pixel_values=_pixels(2, 1), image_sizes=np.array([[10, 30], [30, 31]]))
  found = tile_media.tiled(_MODEL, given | dict(batch_num_images=np.array([2])))
  assert [p.item.size for p in found] == [(0, 0), (0, 0)]


@pytest.mark.parametrize(
  ("given", "match"),
  [
    (dict(pixel_values=_pixels(1, 5)), "no image_sizes"),
    (dict(pixel_values=_pixels(1, 2), image_sizes=np.array([[10, 30]])), r"take \[3\] slots"),
    (dict(pixel_values=_pixels(4), image_sizes=np.array([[10, 30]])), r"take \[3\] slots"),
    (
      dict(
        pixel_values=_pixels(1, 3),
        image_sizes=np.array([[10, 30]]),
        batch_num_images=np.array([2]),
      ),
      "batch_num_images",
    ),
    (dict(pixel_values_videos=_pixels(2)), "pixel_values_videos must be"),
  ],
)
def test_inputs_that_do_not_fit(given, match):
  with pytest.raises(ValueError, match=match):
    tile_media.tiled(_MODEL, given)


def test_towers_of_their_own():
  given = dict(pixel_values=_pixels(1), pixel_values_videos=_pixels(1, 4))
  picture, video = tile_media.towers(_MODEL, given)
  assert {k: len(x) for k, x in picture.media.items()} == {"image": 1, "video": 0}
  assert {k: len(x) for k, x in video.media.items()} == {"image": 0, "video": 4}
  assert video.item.video and video.token == 6
  with pytest.raises(ValueError, match="two names of the same"):
    tile_media.towers(_MODEL, dict(pixel_values=_pixels(1), pixel_values_images=_pixels(1)))
