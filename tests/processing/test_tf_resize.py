"""Resizing against TensorFlow's own pixels (tests/parity/make_tf_resize.py)."""

import numpy as np
import pytest
from PIL import Image

from bigvlm.processing import ops, tf_resize
from bigvlm.processing.pixels import Pixels
from tests.parity import make_tf_resize

with np.load(make_tf_resize.FILE) as file:
  GOLDEN = dict(file)


@pytest.mark.parametrize("n", range(len(make_tf_resize.CASES)))
def test_pixels_are_tensorflows(n):
  size = make_tf_resize.CASES[n][1]
  for name, antialias in (("plain", False), ("anti", True)):
    found = tf_resize.resize(GOLDEN[f"{n}/in"], size, antialias)
    np.testing.assert_allclose(found, GOLDEN[f"{n}/{name}"], rtol=1e-6, atol=1e-5)
    op = ops.resize(GOLDEN[f"{n}/in"], size, antialias=antialias, backend="tf")
    want = GOLDEN[f"{n}/{name}_op"]
    assert op.dtype == np.uint8 and op.shape == want.shape
    wrong = np.abs(op.astype(int) - want)
    assert wrong.max() <= 1 and (wrong > 0).mean() < 1e-3  # Cut off, not rounded.


def test_a_config_asks_for_them(tmp_path):
  image, want = GOLDEN["0/in"], GOLDEN["0/plain_op"]
  Image.fromarray(image).save(tmp_path / "a.png")
  pixels = Pixels(want.shape[:2], antialias=False, backend="tf")
  assert (pixels(tmp_path / "a.png") == want).mean() > 0.999
  assert (pixels(image[..., 0]) == want[..., :1]).mean() > 0.999  # Grey, as RGB.
  with pytest.raises(ValueError, match="backend='tf' resizes by method='bilinear' only"):
    ops.resize(image, 8, method="bicubic", backend="tf")
