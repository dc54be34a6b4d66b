"""Image bytes to uint8 pixels: every kind of file right, hostile ones refused before decoding."""

import dataclasses
import io
import os
import struct
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageOps

# Formats that decode in-process from one buffer. EPS, PDF and the like start other programs.
# Pillow opens MPO through JPEG and raises a KeyError for the name.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
BACKENDS = ("pil", "opencv")
_ORIENTATION = 0x0112  # EXIF tag


class BadExample(ValueError):
  """A record that cannot be used; the loader gives it weight 0 or stops, by config.

  Attributes:
    reason: what is wrong with it, one line.
    record: which record it is (file and line, or source and index).
  """

  def __init__(self, reason: str, record: str = ""):
    super().__init__(reason, record)
    self.reason = reason
    self.record = record

  def __str__(self) -> str:
    return f"{self.record}: {self.reason}" if self.record else self.reason


@dataclasses.dataclass(frozen=True)
class Limits:
  """What an image may cost. Both are checked on the header, before any pixel is decoded."""

  max_pixels: int = 64_000_000
  max_bytes: int = 20_000_000


_DEFAULT = Limits()


def read(source: Any, limits: Limits = _DEFAULT, record: str = "") -> bytes:
  """The bytes of an image given as bytes or a path; BadExample when too large or not there."""
  if isinstance(source, (bytes, bytearray, memoryview)):
    data = bytes(source)
    if len(data) > limits.max_bytes:
      raise BadExample(_too_many_bytes(len(data), limits), record)
    return data
  path = os.fspath(source)
  try:
    size = os.stat(path).st_size
    if size > limits.max_bytes:
      raise BadExample(f"image {path!r}: {_too_many_bytes(size, limits)}", record)
    with open(path, "rb") as f:
      return f.read(limits.max_bytes + 1)
  except (OSError, ValueError) as e:
    if isinstance(e, BadExample):
      raise
    reason = getattr(e, "strerror", None) or str(e)
    raise BadExample(f"image {path!r}: {reason}", record) from None


def _too_many_bytes(size: int, limits: Limits) -> str:
  return f"image of {size:,} bytes is over the limit of {limits.max_bytes:,}"


def decode(
  source: Any,
  *,
  limits: Limits = _DEFAULT,
  at_least: tuple[int, int] | None = None,
  background: int = 255,
  backend: str = "pil",
  record: str = "",
) -> np.ndarray:
  """Decodes one image to RGB.

  Grey, palette, CMYK and 16-bit images become 8-bit RGB, transparent pixels are laid over
  `background`, the EXIF orientation is applied, and of an animation only the first frame is read.

  Args:
    source: bytes of a file, a path, a PIL image, or an array: uint8 or uint16 [H, W], [H, W, 1],
      [H, W, 3] or [H, W, 4].
    limits: caps on bytes and pixels.
    at_least: (height, width). A JPEG may then be decoded at 1/2, 1/4 or 1/8 of its size, as long
      as both sides stay at least this large. None = full size.
    background: grey value under transparent pixels.
    backend: "pil", or "opencv" (for plain JPEG files only; PIL reads all others).
    record: name of the record, for the message.

  Returns:
    uint8 [H, W, 3], C-contiguous.

  Raises:
    BadExample: when it is not an image, is truncated or corrupt, or is over a limit.
  """
  if backend not in BACKENDS:
    raise ValueError(f"unknown image backend {backend!r}; options: {', '.join(BACKENDS)}")
  if isinstance(source, np.ndarray):
    return _from_array(source, limits, background, record)
  try:
    if isinstance(source, Image.Image):
      _check_size(source.width, source.height, limits, record)
      return _to_rgb(source, background, record)
    data = read(source, limits, record)
    return _decode(data, limits, at_least, background, backend, record)
  except BadExample:
    raise
  except MemoryError:
    raise
  except Exception as e:  # Image parsers raise nearly anything on hostile bytes.
    what = str(e) or type(e).__name__
    if isinstance(e, Image.UnidentifiedImageError):
      what = f"not an image that can be read (formats: {', '.join(FORMATS)})"
    raise BadExample(what.splitlines()[0], record) from None


def _check_size(width: int, height: int, limits: Limits, record: str) -> None:
  if width < 1 or height < 1:
    raise BadExample(f"image is empty ({width} x {height})", record)
  if width * height > limits.max_pixels:
    raise BadExample(
      f"image of {width} x {height} pixels is over the limit of {limits.max_pixels:,}", record
    )


def _decode(data, limits, at_least, background, backend, record) -> np.ndarray:
  size = webp_size(data)  # Pillow allocates a WebP's whole canvas while opening it.
  if size:
    _check_size(*size, limits, record)
  # OpenCV 5 refuses truncated files and knows CMYK, older versions need not: it gets complete and
  # upright files of one or three components only.
  if backend == "opencv" and data[-2:] == b"\xff\xd9":
    header = jpeg_header(data)
    if header is not None and header.components in (1, 3) and header.orientation == 1:
      _check_size(header.width, header.height, limits, record)
      pixels = _decode_opencv(data, header.height, header.width, at_least)
      if pixels is not None:
        return pixels
  with Image.open(io.BytesIO(data), formats=FORMATS) as img:
    _check_size(img.width, img.height, limits, record)
    if at_least is not None and img.format == "JPEG":
      if img.getexif().get(_ORIENTATION, 1) >= 5:  # The sides change places after rotation.
        at_least = at_least[::-1]
      img.draft(None, (at_least[1], at_least[0]))
    return _to_rgb(img, background, record)


def _decode_opencv(data, height: int, width: int, at_least) -> np.ndarray | None:
  import cv2

  buffer = np.frombuffer(data, np.uint8)
  if at_least is not None:
    for scale in (8, 4, 2):
      if -(-height // scale) >= at_least[0] and -(-width // scale) >= at_least[1]:
        bgr = cv2.imdecode(buffer, getattr(cv2, f"IMREAD_REDUCED_COLOR_{scale}"))
        return None if bgr is None else cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB)
  return cv2.imdecode(buffer, cv2.IMREAD_COLOR_RGB)


def _to_rgb(img: Image.Image, background: int, record: str) -> np.ndarray:
  if img.getexif().get(_ORIENTATION, 1) != 1:
    img = ImageOps.exif_transpose(img)
  if img.mode == "RGB" and "transparency" not in img.info:
    return np.array(img, dtype=np.uint8, order="C")
  if img.mode in ("I", "F") or img.mode.startswith("I;16"):
    return _from_array(_deep(np.asarray(img), img.mode, record), None, background, record)
  if img.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in img.info:
    img = img.convert("RGBA")
    under = Image.new("RGBA", img.size, (background,) * 3 + (255,))
    img = Image.alpha_composite(under, img)
  return np.array(img.convert("RGB"), dtype=np.uint8, order="C")


def _deep(values: np.ndarray, mode: str, record: str) -> np.ndarray:
  if mode == "F" or values.min() < 0 or values.max() > 65535:
    raise BadExample(f"pixels of mode {mode!r} have no known range (8 or 16 bits do)", record)
  return values.astype(np.uint16)


def _from_array(values: np.ndarray, limits, background: int, record: str) -> np.ndarray:
  shape = values.shape
  if values.ndim == 2:
    values = values[..., None]
  if values.ndim != 3 or values.shape[-1] not in (1, 3, 4):
    raise BadExample(f"array of shape {list(shape)} is no image; want [H, W, 3]", record)
  if limits is not None:
    _check_size(values.shape[1], values.shape[0], limits, record)
  if values.dtype == np.uint16:
    values = ((values.astype(np.uint32) * 255 + 32767) // 65535).astype(np.uint8)
  if values.dtype != np.uint8:
    raise BadExample(f"image array is {values.dtype}; want uint8 (or uint16)", record)
  if values.shape[-1] == 4:
    rgba = Image.fromarray(np.ascontiguousarray(values))
    return _to_rgb(rgba, background, record)
  if values.shape[-1] == 1:
    values = np.repeat(values, 3, axis=-1)
  return np.ascontiguousarray(values)


class Header(NamedTuple):
  """What the markers of a JPEG file say."""

  width: int
  height: int
  components: int
  orientation: int


def jpeg_header(data: bytes) -> Header | None:
  """The header of a JPEG file, a tenth of the time of opening it with Pillow; None for others."""
  if data[:2] != b"\xff\xd8":
    return None
  at, exif = 2, None
  while at + 10 <= len(data) and data[at] == 0xFF:
    kind = data[at + 1]
    if kind == 0xFF:  # a fill byte
      at += 1
      continue
    length = int.from_bytes(data[at + 2 : at + 4], "big")
    if 0xC0 <= kind <= 0xCF and kind not in (0xC4, 0xC8, 0xCC):
      height, width, components = struct.unpack_from(">HHB", data, at + 5)
      return Header(width, height, components, _orientation(exif))
    if kind == 0xE1 and data[at + 4 : at + 10] == b"Exif\0\0":
      exif = data[at + 4 : at + 2 + length]
    at += 2 + length
  return None


def _orientation(block: bytes | None) -> int:
  if block is None:
    return 1
  exif = Image.Exif()
  exif.load(block)
  return exif.get(_ORIENTATION, 1)


def webp_size(data: bytes) -> tuple[int, int] | None:
  """(width, height) of the canvas of a WebP file, from its first chunk; None for other files."""
  if data[:4] != b"RIFF" or data[8:12] != b"WEBP" or len(data) < 30:
    return None
  kind = data[12:16]
  if kind == b"VP8X":
    return (
      1 + int.from_bytes(data[24:27], "little"),
      1 + int.from_bytes(data[27:30], "little"),
    )
  if kind == b"VP8L":
    bits = int.from_bytes(data[21:25], "little")
    return 1 + (bits & 0x3FFF), 1 + ((bits >> 14) & 0x3FFF)
  if kind == b"VP8 ":
    width, height = struct.unpack_from("<HH", data, 26)
    return width & 0x3FFF, height & 0x3FFF
  return None
