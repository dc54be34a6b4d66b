"""Encoders that are read at several layers."""

import jax
import numpy as np
import pytest

from bigvlm.models.vision import vit
from bigvlm.types import Media


def _vit(**fields):
  sizes = dict(width=8, depth=3, hidden=12, heads=2, patch=4, final_norm="none")
  return vit.ViT(**sizes | fields)


def _media():
  pixels = jax.random.normal(jax.random.key(1), (1, 2, 8, 8, 3))
  return Media(pixels, jax.numpy.ones((1, 2), jax.numpy.int32))


def test_taps_are_the_outputs_of_shorter_towers():
  tapped, media = _vit(taps=(2, 0, 3, 2)), _media()
  params = tapped.init(jax.random.key(0), media)["params"]
  x = tapped.apply({"params": params}, media).x
  assert x.shape == (1, 2, 4, 4 * 8)
  groups = params["blocks"]
  parts = {}
  for depth in (2, 3):
    whole = [groups["g0"], groups["g1"]][: depth - 1]
    stacked = jax.tree.map(lambda *a: np.concatenate(a), *whole)
    part = _vit(depth=depth)
    parts[depth] = part.apply({"params": dict(params) | {"blocks": {"g0": stacked}}}, media).x
  np.testing.assert_allclose(x[..., :8], parts[2], rtol=1e-5, atol=1e-6)
  np.testing.assert_allclose(x[..., 16:24], parts[3], rtol=1e-5, atol=1e-6)
  np.testing.assert_array_equal(x[..., :8], x[..., 24:])
  scanned = tapped.clone(mode="scan").apply({"params": params}, media).x
  np.testing.assert_allclose(x, scanned, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("fields", [dict(taps=(4,)), dict(taps=(1,), final_norm="tokens")])
def test_taps_that_cannot_be(fields):
  with pytest.raises(ValueError, match="taps"):
    _vit(**fields).init(jax.random.key(0), _media())
