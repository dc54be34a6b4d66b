"""The tiles connector: which tokens a picture takes, from its size alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigvlm.models.connectors import mlp, tiles
from bigvlm.processing import tiling
from bigvlm.types import Features, Item

_NEXT = [(336, 672), (672, 336), (672, 672), (1008, 336), (336, 1008)]


def _picture(size, points, tile, side, slot=0):
  best = tiling.best_resolution(size, points)
  return Item(slot, (1, side, side), (best[0] // tile, best[1] // tile), size)


@pytest.mark.parametrize(
  ("size", "count"),
  [
    ((480, 640), 2340),
    ((1000, 1000), 2928),
    ((336, 336), 1176),
    ((300, 1200), 1890),
    ((1080, 1920), 1948),
  ],
)
def test_llava_next_counts(size, count):
  connector = tiles.TilesConnector(out_dim=8)
  (rows,) = connector.rows([_picture(size, _NEXT, 336, 24)])
  assert len(rows) == count


def test_large_pictures_are_scaled_down_to_about_nine_tiles():
  connector = tiles.TilesConnector(out_dim=8, most=9, frames="bilinear", video_newline=True)
  points = [(h, w) for h in range(384, 2305, 384) for w in range(384, 2305, 384)]
  (rows,) = connector.rows([_picture((2304, 2304), points, 384, 27)])
  assert len(rows) == 27**2 + 81 * (81 + 1)
  (rows,) = connector.rows([Item(0, (1, 27, 27))])
  assert len(rows) == 27**2 + 1
  (rows,) = connector.rows([Item(0, (8, 27, 27), video=True)])
  assert len(rows) == 8 * 14**2 + 1


def test_rows_read_the_joined_tiles_line_by_line():
  side, batch, slots = 2, 1, 6
  connector = tiles.TilesConnector(out_dim=3)
  x = np.arange(batch * slots * side**2, dtype=np.float32).reshape(batch, slots, side**2, 1)
  feats = {"image": Features(jnp.asarray(x), jnp.ones(x.shape[:3], jnp.int32))}
  params = connector.init(jax.random.key(0), feats)["params"]
  soft = connector.apply({"params": params}, feats)
  # Slot 1 is the overview; its two tiles lie side by side, in a canvas twice as wide as high.
  (rows,) = connector.rows([Item(1, (1, side, side), (1, 2), (10, 20))])
  got = np.asarray(soft.x[0])[rows]
  project = mlp.Projector(3)
  want = np.asarray(project.apply({"params": params["projector"]}, jnp.asarray(x[0])))
  newline = np.asarray(params["newline"])
  lines = [want[2, 0], want[2, 1], want[3, 0], want[3, 1], newline]
  lines += [want[2, 2], want[2, 3], want[3, 2], want[3, 3], newline]
  np.testing.assert_allclose(got, np.stack([*want[1], *lines]), rtol=1e-6)
  assert soft.item[0, 0] == -1


def test_extra_is_for_scaled_pictures_only():
  connector = tiles.TilesConnector(out_dim=3, most=1)
  small, large = Item(0, (1, 2, 2)), Item(1, (1, 2, 2), (2, 2), (30, 30))
  assert connector.extra([[small], []], 6) == {}
  extra = connector.extra([[small, large], []], 6)
  assert extra["shrink_index"].shape == extra["shrink_weight"].shape == (2, 24, 4)
  np.testing.assert_allclose(extra["shrink_weight"].sum(axis=-1), 1.0, rtol=1e-6)
  untouched = extra["shrink_index"][1] == np.arange(24)[:, None]
  assert untouched.all()
  # 4 x 4 patches of four tiles become 2 x 2, each the mean of four neighbours.
  first = extra["shrink_index"][0, 8:12]
  assert sorted(first[0]) == [8, 9, 10, 11]
  np.testing.assert_allclose(extra["shrink_weight"][0, 8:12], 0.25)


def test_videos_need_a_model_that_takes_them():
  with pytest.raises(ValueError, match="takes pictures only"):
    tiles.TilesConnector(out_dim=3).rows([Item(0, (2, 2, 2), video=True)])


def test_videos_of_an_encoder_of_their_own():
  connector = mlp.MlpConnector(out_dim=3, video="video", video_front=1)
  picture, video = Item(0, (1, 2, 2)), Item(0, (2, 2, 2), video=True)
  shapes = {"image": (1, 1, 4, 5), "video": (1, 2, 5, 5)}
  x = {k: jax.random.normal(jax.random.key(n), s) for n, (k, s) in enumerate(shapes.items())}
  feats = {k: Features(v, jnp.ones(v.shape[:3], jnp.int32)) for k, v in x.items()}
  params = connector.init(jax.random.key(2), feats)["params"]
  soft = connector.apply({"params": params}, feats)
  alone = connector.apply({"params": params}, {"video": feats["video"]})
  project = mlp.Projector(3)
  for item, name in ((picture, "image"), (video, "video")):
    want = project.apply({"params": params["projector"]}, x[name].reshape(1, -1, 5))
    (rows,) = connector.rows([item])
    np.testing.assert_allclose(soft.x[0, rows], want[0], rtol=1e-5, atol=1e-6)
  np.testing.assert_allclose(alone.x[0, rows], want[0], rtol=1e-5, atol=1e-6)
