"""The mask codec: published geometry and names, and the same numbers on host and device."""

import jax
import numpy as np
import pytest

from bigvlm import build
from bigvlm.models import mask_codec
from bigvlm.objectives import mask_vq
from bigvlm.processing import masks
from bigvlm.types import Batch


@pytest.fixture(scope="module")
def codec():
  module = build.model(dict(kind="mask_codec"))
  rng = np.random.default_rng(0)
  crops = (rng.random((3, 8, 8)) > 0.5).repeat(8, 1).repeat(8, 2).astype(np.float32)
  batch = Batch(None, {}, weights=np.ones((3, 1), np.float32), extra=dict(mask=crops[..., None]))
  params = jax.jit(module.init)(jax.random.key(0), batch)["params"]
  return module, params, crops, batch


def test_published_sizes(codec):
  count = {k: sum(x.size for x in jax.tree.leaves(v)) for k, v in codec[1].items()}
  assert count == dict(encoder=861_936, decoder=1_123_457, codebook=128 * 512)


def test_published_names_round_trip(codec):
  arrays = mask_codec.to_published(codec[1])
  assert arrays["encoder.0.weight"].shape == (16, 1, 4, 4)
  assert arrays["decoder.4.weight"].shape == (128, 128, 4, 4)
  back = mask_codec.load_published(arrays)
  jax.tree.map(np.testing.assert_array_equal, back, jax.device_get(codec[1]))


def test_host_and_device_agree(codec):
  module, params, crops, batch = codec
  arrays = mask_codec.to_published(params)
  heads = jax.jit(module.apply)({"params": params}, batch).heads
  codes = masks.encode(arrays, crops)
  np.testing.assert_array_equal(codes, heads["code"])
  np.testing.assert_allclose(masks.decode(arrays, codes), heads["recon"][..., 0], atol=1e-4)


@pytest.mark.parametrize("size, stride, pad", [(4, 2, 1), (3, 1, 1), (1, 1, 0)])
def test_convolutions_are_convolutions(size, stride, pad):
  x = np.random.default_rng(0).standard_normal((2, 8, 8, 3)).astype(np.float32)
  layer = mask_codec.Conv(5, size)
  params = layer.init(jax.random.key(0), x)
  want = jax.lax.conv_general_dilated(
    x,
    params["params"]["kernel"],
    (stride, stride),
    [(pad, pad)] * 2,
    dimension_numbers=("NHWC", "HWIO", "NHWC"),
  )
  np.testing.assert_allclose(layer.apply(params, x), want, atol=1e-5)


def test_rows_of_bad_records_do_not_count(codec):
  module, params, _, batch = codec
  out = module.apply({"params": params}, batch)
  objective = mask_vq.MaskVQ()
  first = Batch(None, {}, weights=batch.weights[:1], extra=dict(mask=batch.extra["mask"][:1]))
  alone, _ = objective(module.apply({"params": params}, first), first)
  weights = np.array([[1.0], [0.0], [0.0]], np.float32)
  masked, metrics = objective(out, batch.replace(weights=weights))
  assert float(masked) == pytest.approx(float(alone), rel=1e-4)
  assert float(metrics["mse"][1]) == 1.0


def test_paste_puts_the_crop_into_its_box():
  made = masks.paste(np.ones((64, 64)), (0.25, 0.5, 0.75, 1.0), 40, 20)
  want = np.zeros((40, 20), bool)
  want[10:30, 10:20] = True
  np.testing.assert_array_equal(made, want)
  assert not masks.paste(np.ones((64, 64)), (0.5, 0.5, 0.5, 0.9), 40, 20).any()
