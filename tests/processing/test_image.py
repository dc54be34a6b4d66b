"""Every kind of picture decodes right; hostile ones are refused by name before they are decoded."""

import io
import pickle
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
from PIL import Image

from bigvlm.processing import image as images
from bigvlm.processing.image import BadExample


def close(a, b, most):
  assert a.shape == b.shape and a.dtype == np.uint8
  np.testing.assert_allclose(a.astype(int), b.astype(int), atol=most)


@pytest.mark.parametrize("backend", images.BACKENDS)
@pytest.mark.parametrize("kind,most", [("PNG", 0), ("JPEG", 12), ("WEBP", 24), ("BMP", 0)])
def test_formats(pictures, kind, most, backend):
  want = pictures.scene()
  options = {"quality": 95} if kind != "PNG" else {}
  close(images.decode(pictures.encoded(want, kind, **options), backend=backend), want, most)


def test_lossless_webp_and_gif_and_tiff(pictures):
  want = pictures.scene()
  close(images.decode(pictures.encoded(want, "WEBP", lossless=True)), want, 0)
  close(images.decode(pictures.encoded(want, "TIFF")), want, 0)
  flat = np.full((8, 9, 3), (10, 200, 30), np.uint8)
  close(images.decode(pictures.encoded(flat, "GIF")), flat, 2)


@pytest.mark.parametrize("backend", images.BACKENDS)
def test_grey(pictures, backend):
  grey = pictures.scene()[..., 0]
  want = np.repeat(grey[..., None], 3, -1)
  close(images.decode(pictures.encoded(grey, "PNG"), backend=backend), want, 0)
  close(images.decode(pictures.encoded(grey, "JPEG", quality=95), backend=backend), want, 6)
  bilevel = np.where(want > 127, 255, 0).astype(np.uint8)
  one_bit = Image.fromarray(bilevel[..., 0]).convert("1")
  close(images.decode(pictures.encoded(one_bit, "PNG")), bilevel, 0)


def test_palette(pictures):
  img = Image.fromarray(pictures.scene()).quantize(32)
  want = np.asarray(img.convert("RGB"))
  close(images.decode(pictures.encoded(img, "PNG")), want, 0)


def test_transparency_lies_over_the_background(pictures):
  rgb = pictures.scene()
  alpha = np.zeros(rgb.shape[:2], np.uint8)
  alpha[:, :40] = 255
  alpha[:, 40:50] = 128
  data = pictures.encoded(np.dstack([rgb, alpha]), "PNG")
  white, black = images.decode(data), images.decode(data, background=0)
  np.testing.assert_array_equal(white[:, :40], rgb[:, :40])
  assert (white[:, 50:] == 255).all() and (black[:, 50:] == 0).all()
  half = (rgb[:, 40:50].astype(int) * 128 + 255 * 127) // 255
  np.testing.assert_allclose(white[:, 40:50].astype(int), half, atol=2)
  grey = Image.fromarray(np.dstack([rgb[..., 0], alpha]), "LA")
  assert (images.decode(pictures.encoded(grey, "PNG"))[:, 50:] == 255).all()


def test_transparent_colour_of_palette_and_rgb(pictures):
  img = Image.fromarray(np.array([[0, 1], [1, 0]], np.uint8), "P")
  img.putpalette([255, 0, 0, 0, 255, 0])
  out = images.decode(pictures.encoded(img, "PNG", transparency=0))
  assert out.tolist() == [[[255] * 3, [0, 255, 0]], [[0, 255, 0], [255] * 3]]
  rgb = np.array([[[1, 2, 3], [9, 9, 9]]], np.uint8)
  out = images.decode(pictures.encoded(rgb, "PNG", transparency=(1, 2, 3)))
  assert out.tolist() == [[[255] * 3, [9, 9, 9]]]


def test_sixteen_bit(pictures):
  deep = np.array([[0, 257, 25_700, 65_535]], np.uint16)
  want = np.repeat(np.array([[0, 1, 100, 255]], np.uint8)[..., None], 3, -1)
  for kind in ("PNG", "TIFF"):
    close(images.decode(pictures.encoded(Image.fromarray(deep), kind)), want, 0)
  close(images.decode(deep), want, 0)
  close(images.decode(np.repeat(deep[..., None], 3, -1)), want, 0)


@pytest.mark.parametrize("backend", images.BACKENDS)
def test_cmyk(pictures, backend):
  rgb = pictures.scene()
  data = pictures.encoded(Image.fromarray(rgb).convert("CMYK"), "JPEG", quality=98)
  close(images.decode(data, backend=backend), rgb, 40)


@pytest.mark.parametrize("backend", images.BACKENDS)
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation(pictures, orientation, backend):
  upright = pictures.scene(64, 96)
  inverse = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, 1),
    7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
    8: lambda a: np.rot90(a, -1),
  }[orientation]
  exif = Image.Exif()
  exif[0x0112] = orientation
  stored = np.ascontiguousarray(inverse(upright))
  data = pictures.encoded(stored, "JPEG", quality=97, exif=exif, subsampling=0)
  close(images.decode(data, backend=backend), upright, 12)
  small = images.decode(data, backend=backend, at_least=(32, 40))
  assert small.shape == (32, 48, 3)
  close(small, np.asarray(Image.fromarray(upright).reduce(2)), 20)


@pytest.mark.parametrize("backend", images.BACKENDS)
def test_reduced_decoding_keeps_the_picture_and_the_least_size(pictures, backend):
  big = pictures.scene(400, 600)
  data = pictures.encoded(big, "JPEG", quality=95)
  for at_least, shape in [
    ((400, 600), (400, 600)),
    ((201, 10), (400, 600)),
    ((200, 300), (200, 300)),
    ((90, 150), (100, 150)),
    ((1, 1), (50, 75)),
  ]:
    out = images.decode(data, at_least=at_least, backend=backend)
    assert out.shape == (*shape, 3)
    want = np.asarray(Image.fromarray(big).resize(shape[::-1], Image.Resampling.BOX))
    assert np.abs(out.astype(int) - want).mean() < 2


def test_sources_of_all_kinds(pictures, tmp_path):
  want = pictures.scene()
  path = tmp_path / "a.png"
  path.write_bytes(pictures.encoded(want, "PNG"))
  for source in (want, str(path), path, Image.fromarray(want), path.read_bytes()):
    np.testing.assert_array_equal(images.decode(source), want)
  assert images.decode(want[..., :1]).shape == want.shape


def test_only_the_first_frame_is_read(pictures):
  frames = [Image.fromarray(np.full((6, 5, 3), v, np.uint8)) for v in (10, 200, 90)]
  for kind in ("PNG", "WEBP", "TIFF"):
    options = {"lossless": True} if kind == "WEBP" else {}
    data = pictures.encoded(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    assert (images.decode(data) == 10).all(), kind


# --- what is refused ------------------------------------------------------------------------------


def refused(source, text, **options):
  with pytest.raises(BadExample, match=text) as e:
    images.decode(source, record="set.jsonl:7", **options)
  assert str(e.value).startswith("set.jsonl:7: ")
  assert "\n" not in str(e.value)


@pytest.mark.parametrize("backend", images.BACKENDS)
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF"])
def test_truncated(pictures, kind, backend):
  noise = np.random.default_rng(0).integers(0, 256, (90, 90, 3), dtype=np.uint8)
  data = pictures.encoded(noise, kind)
  for share in (0.05, 0.5, 0.95):
    refused(data[: int(len(data) * share)], ".", backend=backend)


@pytest.mark.parametrize(
  "data",
  [b"", b"hello", b"<svg xmlns='http://www.w3.org/2000/svg'/>", b"%!PS-Adobe-3.0 EPSF-3.0\n%%EOF"],
)
def test_what_is_no_image(data):
  refused(data, "not an image")


def bomb_png(width, height):
  """A few KB of PNG that claim width x height 1-bit pixels."""

  def chunk(kind, body):
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

  size = min((1 + (width + 7) // 8) * height, 10_000_000)
  body = zlib.compress(bytes(size), 9)
  header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
  signature = b"\x89PNG\r\n\x1a\n"
  return signature + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def bomb_webp(width, height):
  """A WebP header with a canvas of width x height and nothing in it."""
  body = b"\x02\0\0\0" + (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
  anim = b"ANIM" + struct.pack("<I", 6) + b"\0" * 6
  chunks = b"WEBP" + b"VP8X" + struct.pack("<I", 10) + body + anim
  return b"RIFF" + struct.pack("<I", len(chunks)) + chunks


def test_bombs_of_many_pixels(pictures):
  limit = "over the limit of 64,000,000"
  refused(bomb_png(9000, 9000), f"9000 x 9000 pixels is {limit}")
  refused(bomb_png(2**31 - 1, 2**31 - 1), "limit")  # Pillow itself says it
  refused(bomb_webp(16_000, 16_000), f"16000 x 16000 pixels is {limit}")
  gif = bytearray(pictures.encoded(np.zeros((4, 4, 3), np.uint8), "GIF"))
  gif[6:10] = struct.pack("<HH", 65535, 65535)
  refused(bytes(gif), "limit")
  jpeg = bytearray(pictures.encoded(np.zeros((16, 16, 3), np.uint8), "JPEG"))
  at = jpeg.index(b"\xff\xc0")
  jpeg[at + 5 : at + 9] = struct.pack(">HH", 65000, 65000)
  for backend in images.BACKENDS:
    refused(bytes(jpeg), "limit", backend=backend)
  small = images.Limits(max_pixels=59 * 80)
  refused(pictures.encoded(pictures.scene(), "PNG"), "over the limit of 4,720", limits=small)
  refused(pictures.scene(), "over the limit of 4,720", limits=small)


def test_bombs_take_no_memory():
  """Each is refused from its header: the process grows by less than the picture would need."""
  code = """
import resource, sys
sys.path[:0] = sys.argv[1:]
from test_image import bomb_png, bomb_webp, images
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for data in (bomb_png(20000, 20000), bomb_png(9000, 9000), bomb_webp(16000, 16000)):
  try:
    images.decode(data)
  except images.BadExample:
    continue
  raise SystemExit("decoded")
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
  here = __file__.rpartition("/")[0]
  found = subprocess.run(
    [sys.executable, "-c", code, here, here + "/../.."], capture_output=True, text=True, check=False
  )
  assert found.returncode == 0, found.stderr
  assert int(found.stdout) < 60_000  # KB; one of them alone would take 240 MB or more.


def test_too_many_bytes(pictures, tmp_path):
  path = tmp_path / "big.png"
  path.write_bytes(pictures.encoded(pictures.scene(), "PNG"))
  limits = images.Limits(max_bytes=100)
  refused(str(path), r"big.png.*bytes is over the limit of 100", limits=limits)
  refused(path.read_bytes(), "bytes is over the limit of 100", limits=limits)


def test_missing_file_and_odd_arrays(tmp_path):
  refused(str(tmp_path / "none.png"), "none.png.*No such file")
  refused(str(tmp_path), "Is a directory")
  refused("a\0b.png", "null")
  refused(np.zeros((4, 4, 3), np.float32), "float32; want uint8")
  refused(np.zeros((4, 4, 2), np.uint8), r"shape \[4, 4, 2\]")
  refused(np.zeros((0, 4, 3), np.uint8), "empty")


def test_pixels_of_unknown_range(pictures):
  refused(pictures.encoded(Image.fromarray(np.ones((3, 3), np.float32)), "TIFF"), "no known range")
  wide = Image.fromarray(np.full((3, 3), 70_000, np.int32))
  refused(pictures.encoded(wide, "TIFF"), "no known range")


def test_random_damage_raises_nothing_else(pictures):
  rng = np.random.default_rng(1)
  noise = rng.integers(0, 256, (24, 24, 3), dtype=np.uint8)
  for kind in ("JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP"):
    data = pictures.encoded(noise, kind)
    for _ in range(60):
      broken = bytearray(data)
      for at in rng.integers(0, len(data), 3):
        broken[at] = rng.integers(256)
      for backend in images.BACKENDS:
        try:
          out = images.decode(bytes(broken), backend=backend, limits=images.Limits(10**6))
        except BadExample:
          continue
        assert out.ndim == 3 and out.shape[-1] == 3 and out.dtype == np.uint8


def test_bad_example_pickles():
  error = pickle.loads(pickle.dumps(BadExample("is broken", "a:1")))
  assert (error.reason, error.record, str(error)) == ("is broken", "a:1", "a:1: is broken")


def test_unknown_backend():
  with pytest.raises(ValueError, match="unknown image backend 'cv'; options: pil, opencv"):
    images.decode(io.BytesIO().getvalue(), backend="cv")
