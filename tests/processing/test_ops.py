"""Small functions, in and out of configs."""

import pickle

import numpy as np
import pytest
from PIL import Image

from bigvlm.processing import ops


def rng(seed=0):
  return np.random.default_rng(seed)


def test_resize_is_pillows(pictures):
  image = pictures.scene()
  for method, filt in ops.METHODS.items():
    want = np.asarray(Image.fromarray(image).resize((24, 16), filt))
    np.testing.assert_array_equal(ops.resize(image, (16, 24), method), want)
  assert ops.resize(image, 24).shape == (24, 24, 3)
  assert ops.resize(image, image.shape[:2]) is image
  assert ops.resize(image[..., 0], (16, 24)).shape == (16, 24)


def test_antialias_averages_and_sampling_does_not():
  stripes = np.tile(np.array([0, 0, 255, 255], np.uint8), (16, 16))
  stripes = np.repeat(stripes[..., None], 3, -1)
  smooth = ops.resize(stripes, (4, 16))
  assert 60 < smooth[:, 2:-2].min() and smooth[:, 2:-2].max() < 195
  points = ops.resize(stripes, (4, 16), antialias=False)
  # New centres lie at source columns 1.5, 5.5, ..: halfway between a dark and a light one.
  assert (points == 128).all() or (points == 127).all()
  nearest = ops.resize(stripes, (4, 16), "nearest", antialias=False)
  assert set(np.unique(nearest)) <= {0, 255}


def test_sampling_places_pixel_centres():
  ramp = np.repeat(np.arange(0, 240, 10, dtype=np.uint8)[None, :, None], 3, -1)
  ramp = np.repeat(ramp, 6, 0)
  out = ops.resize(ramp, (2, 8), antialias=False)
  assert out[0, :, 0].tolist() == [10, 40, 70, 100, 130, 160, 190, 220]


@pytest.mark.parametrize("shape", [(375, 500), (150, 200), (900, 700), (1500, 2000)])
def test_opencv_backend_is_close_to_pillow(shape):
  small = rng().integers(0, 256, (30, 40, 3), dtype=np.uint8)
  image = np.array(Image.fromarray(small).resize(shape[::-1], Image.Resampling.BICUBIC))
  for antialias in (True, False):
    want = ops.resize(image, 224, antialias=antialias).astype(int)
    got = ops.resize(image, 224, antialias=antialias, backend="opencv")
    assert np.abs(got - want).mean() < 2.5, antialias
  # What is fine-grained must not alias: a checkerboard of single pixels turns grey.
  board = np.repeat((np.indices(shape).sum(0) % 2 * 255).astype(np.uint8)[..., None], 3, -1)
  if min(shape) > 224:
    inner = ops.resize(board, 224, backend="opencv")[4:-4, 4:-4]
    assert inner.std() < 45 and abs(inner.mean() - 127.5) < 3


def test_resize_errors(pictures):
  image = pictures.scene()
  with pytest.raises(ValueError, match="unknown resize method 'bilinaer'; did you mean 'bilinear'"):
    ops.resize(image, 8, "bilinaer")
  with pytest.raises(ValueError, match="lanczos"):
    ops.resize(image, 8, "lanczos", antialias=False)
  with pytest.raises(ValueError, match="method='bilinear' only"):
    ops.resize(image, 8, "bicubic", backend="opencv")
  with pytest.raises(ValueError, match="unknown image backend"):
    ops.resize(image, 8, backend="vips")
  for size in (0, (4,), (4, -1)):
    with pytest.raises(ValueError, match="image size is an int or"):
      ops.resize(image, size)


def test_resize_small_keeps_the_aspect(pictures):
  assert ops.resize_small(pictures.scene(60, 80), 30).shape == (30, 40, 3)
  assert ops.resize_small(pictures.scene(80, 60), 90).shape == (120, 90, 3)


def test_crops(pictures):
  image = pictures.scene(60, 80)
  np.testing.assert_array_equal(ops.central_crop(image, (20, 40)), image[20:40, 20:60])
  seen = set()
  for seed in range(80):
    part = ops.random_crop(image, (58, 78), rng=rng(seed))
    where = [
      (y, x) for y in range(3) for x in range(3) if (image[y : y + 58, x : x + 78] == part).all()
    ]
    assert len(where) == 1
    seen.add(where[0])
  assert len(seen) == 9
  with pytest.raises(ValueError, match="central_crop of 61 x 10 from an image of 60 x 80"):
    ops.central_crop(image, (61, 10))


def test_inception_crop_covers_its_range():
  index = np.arange(100 * 100, dtype=np.int64).reshape(100, 100)
  image = np.stack([index // 256 % 256, index % 256, index * 0], -1).astype(np.uint8)
  areas, ratios = [], []
  for seed in range(200):
    part = ops.inception_crop(image, area=(0.2, 0.6), rng=rng(seed))
    areas.append(part.shape[0] * part.shape[1] / 10_000)
    ratios.append(part.shape[1] / part.shape[0])
    first = int(part[0, 0, 0]) * 256 + int(part[0, 0, 1])
    y, x = divmod(int(first), 100)
    np.testing.assert_array_equal(part, image[y : y + part.shape[0], x : x + part.shape[1]])
  assert 0.17 < min(areas) < 0.25 and 0.55 < max(areas) < 0.63
  assert 0.7 < min(ratios) < 0.82 and 1.22 < max(ratios) < 1.4
  assert ops.inception_crop(image, 32, rng=rng()).shape == (32, 32, 3)
  thin = np.zeros((2, 400, 3), np.uint8)  # No part of that shape fits: the whole picture.
  assert ops.inception_crop(thin, area=(0.9, 1), rng=rng()).shape == (2, 400, 3)


def test_flip_and_value_range(pictures):
  image = pictures.scene()
  np.testing.assert_array_equal(ops.flip_lr(image), image[:, ::-1])
  flipped = sum((ops.flip_lr(image, 0.3, rng=rng(s)) != image).any() for s in range(400))
  assert 80 < flipped < 160
  out = ops.value_range(np.array([[0, 255, 51]], np.uint8))
  np.testing.assert_allclose(out, [[-1, 1, -0.6]], atol=1e-6)
  assert out.dtype == np.float32
  clipped = ops.value_range(np.array([300.0]), 0, 1, clip=True)
  assert clipped.tolist() == [1]


def test_text_functions(tok):
  assert ops.lower("Ab É") == "ab é"
  assert {ops.choice(["a", "b"], rng=rng(s)) for s in range(20)} == {"a", "b"}
  assert ops.choice("ab", rng=rng()) == "ab"
  ids = tok.encode("how many")
  assert ops.tokenise("how many", tok) == ids
  n = len(ids)
  out = ops.tokenise("how many", tok, length=n + 3, eos=True)
  assert out.tolist() == [*ids, 1, 0, 0] and out.dtype == np.int32
  assert ops.tokenise("how many", tok, length=n, eos=True).tolist() == [*ids[:-1], 1]
  assert ops.tokenise("how many", tok, length=n + 1, pad=1).tolist() == [*ids, 1]


# --- in configs -----------------------------------------------------------------------------------


def test_every_op_of_the_table_runs_from_a_config(pictures, plain_model):
  tokens = dict(path=plain_model)
  cfgs = {
    "decode": dict(),
    "resize": dict(size=20),
    "resize_small": dict(size=20),
    "value_range": dict(),
    "inception_crop": dict(size=16),
    "random_crop": dict(size=16),
    "central_crop": dict(size=16),
    "flip_lr": dict(p=0.5),
    "lower": dict(),
    "choice": dict(),
    "tokenise": dict(tokenizer=tokens, length=8),
    "pack_prefix_suffix": dict(tokenizer=tokens, text_len=16),
    "mask_concat": dict(fields=("a", "b"), mask_ar=(0, 1), mask_loss=(0, 1), length=5),
    "keep": dict(fields=("image", "text")),
    "template": dict(pattern="what is {text}?", to="question"),
    "letter_choices": dict(choices="b", label="n"),
    "frames": dict(count=3, field="b"),
    "draw_box": dict(box="place"),
    "read_mask": dict(field="image"),
  }
  assert set(cfgs) == set(ops.OPS)
  example = dict(
    id="x", image=pictures.encoded(pictures.scene(), "PNG"), text="ab", prefix="p", suffix="S",
    a=[4], b=[5, 6], n=1, place=[0.1, 0.2, 0.8, 0.9],
  )  # fmt: skip
  before = dict(example)
  for name, kwargs in cfgs.items():
    op = pickle.loads(pickle.dumps(ops.make(dict(op=name, **kwargs))))
    out = op(example, rng())
    assert example == before, f"{name} changed its input"
    assert (
      set(out) != set(example) or any(out[k] is not example[k] for k in out) or name == "choice"
    )
  assert set(ops.make(dict(op="keep", fields=("text",)))(example, rng())) == {"id", "text"}
  out = ops.make(dict(op="lower", field="text", out="small"))(dict(text="AB"), rng())
  assert out == dict(text="AB", small="ab")


def test_chain_is_random_by_rng_alone(pictures):
  chain = ops.chain([dict(op="inception_crop", size=16), dict(op="flip_lr", p=0.5)])
  example = dict(image=pictures.scene())
  a, b, c = (chain(example, rng(s))["image"] for s in (1, 1, 2))
  np.testing.assert_array_equal(a, b)
  assert (a != c).any()


def test_own_function_in_a_chain():
  chain = ops.chain([lambda example, rng: {**example, "n": int(rng.integers(5))}])
  assert chain(dict(id="a"), rng(3)) == dict(id="a", n=int(rng(3).integers(5)))


def test_config_errors():
  with pytest.raises(
    ValueError, match="unknown preprocessing op 'flip_rl'; did you mean 'flip_lr'"
  ):
    ops.make(dict(op="flip_rl"))
  with pytest.raises(ValueError, match="argument of op 'resize' 'sise'; did you mean 'size'"):
    ops.make(dict(op="resize", sise=3))
  with pytest.raises(ValueError, match="op 'resize' needs the argument 'size'"):
    ops.make(dict(op="resize"))
  with pytest.raises(ValueError, match=r"is dict\(op=NAME"):
    ops.make(dict(name="resize"))
  with pytest.raises(ValueError, match="field for op 'lower' of example a 'suffix'"):
    ops.make(dict(op="lower"))(dict(id="a", sufix="x"), rng())
  with pytest.raises(ValueError, match="unknown field of an example 'imag'; did you mean 'image'"):
    ops.keep(dict(image=1), "imag")


@pytest.mark.parametrize(
  "extra", [dict(boxes=[[0, 0, 1, 1]]), dict(suffix="<loc0000> a"), dict(mask=np.ones((2, 2)))]
)
def test_moving_pixels_of_an_example_with_places_is_refused(pictures, extra):
  example = dict(id="a:1", image=pictures.scene(), **extra)
  with pytest.raises(ValueError, match="'flip_lr' moves pixels, but example a:1 has places"):
    ops.make(dict(op="flip_lr", p=0.5))(example, rng())
  assert ops.make(dict(op="resize", size=8))(example, rng())["image"].shape == (8, 8, 3)
