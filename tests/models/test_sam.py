"""The encoder with attention in squares: padding, what sees what, sizes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigvlm.models.vision import sam
from bigvlm.types import Media

SIZES = dict(width=16, depth=2, hidden=24, heads=2, patch=4, table=(5, 5), window=3)


def media(seed=0, side=20):
  x = np.random.default_rng(seed).standard_normal((1, 2, side, side, 3)).astype(np.float32)
  return Media(jnp.asarray(x), jnp.ones((1, 2), jnp.int32))


def draw(encoder, given):
  shapes = jax.eval_shape(encoder.init, jax.random.key(0), given)["params"]
  return jax.tree.map(
    lambda x: jnp.asarray(np.random.default_rng(x.size).standard_normal(x.shape) * 0.3, x.dtype),
    shapes,
  )


def run(encoder, params, *given):
  apply = jax.jit(encoder.apply)
  return [np.asarray(apply({"params": params}, x).x) for x in given]


@pytest.mark.parametrize("side", [1, 2, 3, 5, 7])
def test_squares_and_back(side):
  x = jnp.arange(2 * 5 * 7 * 3.0).reshape(2, 5, 7, 3)
  cut = sam.squares(x, side)
  assert cut.shape == (2 * -(-5 // side) * -(-7 // side), side, side, 3)
  np.testing.assert_array_equal(sam.grids(cut, (5, 7)), x)
  np.testing.assert_array_equal(cut[0], np.pad(x[0], ((0, side), (0, side), (0, 0)))[:side, :side])


def test_a_patch_sees_its_square_and_with_a_layer_that_sees_everything_all():
  # The neck's 3x3 convolution looks one patch further.
  near, far = (sam.Sam(**SIZES, everywhere=e) for e in ((), (1,)))
  one = media()
  other = one.replace(pixels=one.pixels.at[:, :, 16:, 16:].add(1.0))
  pairs = [run(e, draw(e, one), one, other) for e in (near, far)]
  changed = [np.abs(a - b).max(-1) > 1e-5 for a, b in pairs]
  grid = changed[0].reshape(1, 2, 5, 5)
  assert grid[..., 3:, 3:].all() and not grid[..., :2, :].any() and not grid[..., :, :2].any()
  assert changed[1].all()


def test_a_tap_is_the_shorter_encoder_with_a_neck_of_its_own():
  given = media()
  tapped = sam.Sam(**SIZES, everywhere=(0,), tap=1, out_dim=8)
  params = draw(tapped, given)
  first = sam.Sam(**SIZES | dict(depth=1), everywhere=(0,), out_dim=8)
  part = {k: v for k, v in params.items() if k not in ("neck", "tap_neck", "blocks")}
  part |= dict(neck=params["tap_neck"], blocks=dict(g0=params["blocks"]["g0"]))
  (x,), (y,) = run(tapped, params, given), run(first, part, given)
  np.testing.assert_allclose(y, x[..., 8:], atol=1e-5)


def test_pictures_of_another_size_are_refused():
  with pytest.raises(ValueError, match=r"\(20, 20\) pixels, not \(24, 24\)"):
    draw(sam.Sam(**SIZES), media(side=24))
