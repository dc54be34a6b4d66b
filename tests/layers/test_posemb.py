"""Position tables: each resampling equals the reference that its docstring names."""

import jax
import numpy as np
import pytest
import scipy.ndimage

from bigvlm.layers import posemb

GRIDS = [((14, 14), (24, 24)), ((14, 14), (7, 9)), ((3, 5), (8, 2)), ((4, 4), (1, 6))]


def table(grid, width=5):
  return np.random.default_rng(0).normal(size=(1, grid[0] * grid[1], width)).astype(np.float32)


@pytest.mark.parametrize("old, new", GRIDS)
def test_linear_corners_is_scipy_zoom(old, new):
  x = table(old)
  zoom = (new[0] / old[0], new[1] / old[1], 1)
  want = scipy.ndimage.zoom(x.reshape(*old, -1).astype(np.float64), zoom, order=1)
  got = posemb.resample(x, old, new, "linear_corners").reshape(*new, -1)
  np.testing.assert_allclose(got, want, atol=1e-6)


@pytest.mark.parametrize("old, new", GRIDS)
def test_bilinear_antialias_is_the_antialiased_resize(old, new):
  x = table(old)
  shape = (*new, x.shape[-1])
  want = jax.image.resize(x.reshape(*old, -1), shape, "bilinear", antialias=True)
  got = posemb.resample(x, old, new, "bilinear_antialias").reshape(shape)
  np.testing.assert_allclose(got, want, atol=1e-5)


# torch.nn.functional.interpolate(mode="bicubic", align_corners=False, antialias=False), torch 2.13.
BICUBIC = {
  (5, 6): [
    [-1.275306, 3.926, 7.313815, 2.590185, 5.978, 11.179306],
    [2.519597, 3.558625, 4.901102, 5.332398, 7.153375, 8.657153],
    [6.347222, 3.34375, 2.726852, 8.273148, 7.65625, 4.652778],
    [3.203597, 4.242625, 5.715727, 6.669523, 4.075375, 1.164028],
    [-0.179306, 5.022, 8.61912, 4.732713, 1.046, -0.827222],
  ],
  (2, 3): [[2.146073, 5.059448, 8.376551], [2.954667, 6.701904, 1.567143]],
}


@pytest.mark.parametrize("new", BICUBIC)
def test_bicubic_is_torch_bicubic(new):
  x = (np.arange(12.0) * 7 % 11).reshape(1, 12, 1)
  got = posemb.resample(x, (3, 4), new, "bicubic").reshape(new)
  np.testing.assert_allclose(got, BICUBIC[new], atol=1e-6)


def test_the_same_grid_changes_nothing():
  x = table((3, 4))
  assert posemb.resample(x, (3, 4), (3, 4), "bicubic") is x


def test_errors_name_the_method_and_the_grid():
  with pytest.raises(ValueError, match="nearest.*linear_corners"):
    posemb.resample(table((2, 2)), (2, 2), (3, 3), "nearest")
  with pytest.raises(ValueError, match="grid of 3x3"):
    posemb.resample(table((2, 2)), (3, 3), (4, 4), "bicubic")


def test_sincos2d_by_hand():
  got = posemb.sincos2d((2, 3), 8)
  assert got.shape == (1, 6, 8)
  y, x = 1, 2
  want = [np.sin(x), np.sin(x * 1e-4), np.cos(x), np.cos(x * 1e-4)]
  want += [np.sin(y), np.sin(y * 1e-4), np.cos(y), np.cos(y * 1e-4)]
  np.testing.assert_allclose(got[0, y * 3 + x], want, atol=1e-6)
  with pytest.raises(ValueError, match="multiple of 4"):
    posemb.sincos2d((2, 2), 6)
