"""Examples to the flat arrays of one batch row, on the host, in NumPy.

An example is a dict: `image` (bytes, a path, a PIL image or an array; for prefix_lm also a list of
them, or frames in an array [F, H, W, 3]) and, by kind, `prefix` and `suffix`, or `text`, or `mask`.
`bigvlm.types.to_batch` says what becomes of the arrays.
"""

import os
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from PIL import Image

from bigvlm.processing import ops, prompt
from bigvlm.processing import pixels as pixels_lib
from bigvlm.processing import tokenizer as tokenizers
from bigvlm.processing.image import BadExample
from bigvlm.processing.pixels import Arrays
from bigvlm.utils import names

Spec = dict[str, tuple[tuple[int, ...], np.dtype]]


class Processor:
  """What all kinds share.

  Attributes:
    tokenizer: the tokeniser, or None (kind "mask").
    image_tokens: placeholders of a picture in the token sequence.
    grid: patch grid (h, w) of the picture, or None.
    random: whether `row` uses its rng; the loader gives None where nobody does.
  """

  random: bool = False
  tokenizer: tokenizers.SentencePiece | None = None
  image_tokens: int = 0
  grid: tuple[int, int] | None = None

  def row(self, example: Mapping[str, Any], rng: np.random.Generator) -> tuple[Arrays, bool]:
    """The arrays of one example, and whether its text was cut. Raises BadExample."""
    raise NotImplementedError

  def __call__(self, example: Mapping[str, Any], rng: np.random.Generator) -> Arrays:
    """The arrays of one example, without a batch axis. Raises BadExample."""
    return self.row(example, rng)[0]

  def prompt(self, example: Mapping[str, Any]) -> Arrays:
    """The same arrays for inference: nothing of the answer is read."""
    raise NotImplementedError

  def spec(self) -> Spec:
    """{name: (shape, dtype)} of what a call returns."""
    return {k: (v.shape, v.dtype) for k, v in self.blank().items()}

  def blank(self) -> Arrays:
    """A row of the same spec for a record that cannot be used: `weights` 0, `bad` 1."""
    raise NotImplementedError

  def decode(self, ids: Iterable[int]) -> str:
    """Text of generated ids, up to the first EOS."""
    if self.tokenizer is None:
      raise ValueError(f"{type(self).__name__} has no tokeniser")
    kept = []
    for i in ids:
      if int(i) == self.tokenizer.eos:
        break
      kept.append(int(i))
    return self.tokenizer.decode(kept)


def _text(example: Mapping[str, Any], field: str) -> str:
  if field not in example:
    raise BadExample(f"has no field {field!r}", str(example.get("id", "")))
  value = example[field]
  if not isinstance(value, str):
    raise BadExample(
      f"field {field!r} is {type(value).__name__}, not text", str(example.get("id", ""))
    )
  return value


_GOOD = np.zeros((), np.int32)
_BAD = np.ones((), np.int32)


class PrefixLM(Processor):
  """Picture, prefix and suffix for a generative model (see `prompt.pack`).

  Args:
    pixels: image settings.
    tokenizer: needs bos, eos and pad.
    image_tokens: N, rows that the connector gives for the pictures of an example, all alike.
    grid: patch grid (h, w) of a picture.
    text_len: positions after the pictures.
    read_len: positions whose logits are wanted; 0 = text_len.
    images: I, most pictures (or frames of a video) of an example. Slots that an example does not
      fill have item 0, and nobody sees their placeholders.
    sep: what stands between prefix and suffix.

  Rows: `image` uint8 [I, H, W, 3], `image_item` int32 [I], the fields of `prompt.pack` with
  T = N + text_len, `bad` int32 [].
  """

  def __init__(
    self, pixels, tokenizer, *, image_tokens, grid=None, text_len=64, read_len=0, images=1, sep="\n"
  ):
    for field in ("bos", "eos"):
      if getattr(tokenizer, field) is None:
        raise ValueError(f"the tokeniser has no {field.upper()}, which prefix_lm needs")
    if not 0 <= read_len <= text_len:
      raise ValueError(f"processor.read_len={read_len} must lie in 0..text_len={text_len}")
    self.pixels, self.tokenizer = pixels, tokenizer
    if images < 1 or image_tokens % images:
      raise ValueError(
        f"processor.image.count={images} pictures cannot share {image_tokens} placeholders"
      )
    self.image_tokens, self.grid, self.images = image_tokens, grid, images
    self.text_len, self.read_len = text_len, read_len
    self.sep = tokenizer.encode(sep)

  def _pack(self, prefix: str, suffix: str | None, images: int) -> prompt.Packed:
    tok = self.tokenizer
    return prompt.pack(
      tok.encode(prefix),
      None if suffix is None else tok.encode(suffix),
      image_tokens=self.image_tokens,
      text_len=self.text_len,
      bos=tok.bos,
      eos=tok.eos,
      sep=self.sep,
      pad=tok.pad or 0,
      read_len=self.read_len,
      missing=(self.images - images) * (self.image_tokens // self.images),
    )

  def _pictures(self, found: list[Any], record: str) -> Arrays:
    out = pixels_lib.none(self.pixels, self.images)
    for i, one in enumerate(found):
      out["image"][i] = self.pixels(one, record)
      out["image_item"][i] = i + 1
    return out

  def row(self, example, rng):
    found, record = pixels_lib.listed(example, self.images), str(example.get("id", ""))
    try:
      packed = self._pack(_text(example, "prefix"), _text(example, "suffix"), len(found))
    except BadExample:
      raise
    except ValueError as e:
      raise BadExample(str(e), record) from None
    return {**self._pictures(found, record), **packed.arrays, "bad": _GOOD}, packed.cut

  def prompt(self, example):
    """As a call, but without suffix: `read` = [last position of the prompt], K = 1."""
    found, record = pixels_lib.listed(example, self.images), str(example.get("id", ""))
    packed = self._pack(_text(example, "prefix"), None, len(found))
    return {**self._pictures(found, record), **packed.arrays, "bad": _GOOD}

  def blank(self):
    packed = self._pack("", "", self.images)
    arrays = {**pixels_lib.none(self.pixels, self.images), **packed.arrays, "bad": _BAD}
    # The tokens stay a valid short prompt: a row of padding only would give NaN in some softmax.
    items = np.arange(1, self.images + 1, dtype=np.int32)
    return {**arrays, "image_item": items, "weights": arrays["weights"] * 0}


class Seq2Seq(Processor):
  """Picture and prefix for an encoder, suffix for a decoder (see `prompt.pack_pair`).

  Args:
    pixels: image settings.
    tokenizer: needs eos.
    image_tokens: N, rows that the connector gives for a picture; 0 = a model of text alone.
    grid: patch grid (h, w).
    text_len: positions of the encoder after the picture.
    target_len: positions of the decoder.

  Rows: `image` uint8 [1, H, W, 3], `image_item` int32 [1] (not for text alone), the fields of
  `prompt.pack_pair` with T = N + text_len, `bad` int32 [].
  """

  def __init__(self, pixels, tokenizer, *, image_tokens=0, grid=None, text_len=64, target_len=64):
    if tokenizer.eos is None:
      raise ValueError("the tokeniser has no EOS, which seq2seq needs")
    if min(text_len, target_len) < 1:
      raise ValueError("processor.text_len and processor.target_len must be at least 1")
    self.pixels, self.tokenizer = pixels, tokenizer
    self.image_tokens, self.grid = image_tokens, grid
    self.text_len, self.target_len = text_len, target_len

  def _pack(self, prefix: str, suffix: str | None) -> prompt.Packed:
    tok = self.tokenizer
    return prompt.pack_pair(
      tok.encode(prefix),
      None if suffix is None else tok.encode(suffix),
      image_tokens=self.image_tokens,
      text_len=self.text_len,
      target_len=self.target_len,
      eos=tok.eos,
      pad=tok.pad or 0,
    )

  def _arrays(self, example, suffix):
    try:
      packed = self._pack(_text(example, "prefix"), suffix)
    except BadExample:
      raise
    except ValueError as e:
      raise BadExample(str(e), str(example.get("id", ""))) from None
    picture = pixels_lib.one(example, self.pixels) if self.image_tokens else {}
    return {**picture, **packed.arrays, "bad": _GOOD}, packed.cut

  def row(self, example, rng):
    return self._arrays(example, _text(example, "suffix"))

  def prompt(self, example):
    """As a call, but the decoder reads its start token alone, K = 1."""
    return self._arrays(example, None)[0]

  def blank(self):
    arrays = {**self._pack("", "").arrays, "bad": _BAD}
    if self.image_tokens:
      arrays |= {**pixels_lib.none(self.pixels), "image_item": np.ones(1, np.int32)}
    return {**arrays, "weights": arrays["weights"] * 0}


class Contrastive(Processor):
  """Picture and text for a two-tower model (see `prompt.pack_text`).

  Args:
    pixels: image settings.
    tokenizer: needs eos.
    text_len: T.
    grid: patch grid (h, w).

  Rows: `image` uint8 [1, H, W, 3], `image_item` int32 [1], the fields of `prompt.pack_text`,
  `bad` int32 [].
  """

  def __init__(self, pixels, tokenizer, *, text_len=64, grid=None):
    if tokenizer.eos is None:
      raise ValueError("the tokeniser has no EOS, which contrastive needs")
    self.pixels, self.tokenizer, self.text_len, self.grid = pixels, tokenizer, text_len, grid

  def _pack(self, text: str) -> tuple[Arrays, bool]:
    tok = self.tokenizer
    ids = tok.encode(text)
    arrays = prompt.pack_text(ids, text_len=self.text_len, eos=tok.eos, pad=tok.pad or 0)
    return arrays, len(ids) >= self.text_len

  def row(self, example, rng):
    arrays, cut = self._pack(_text(example, "text"))
    return {**pixels_lib.one(example, self.pixels), **arrays, "bad": _GOOD}, cut

  def prompt(self, example):
    """As a call, but either side may be missing: a black picture, an empty text."""
    there = "image" in example
    picture = pixels_lib.one(example, self.pixels) if there else pixels_lib.none(self.pixels)
    return {**picture, **self._pack(example.get("text", ""))[0], "bad": _GOOD}

  def blank(self):
    arrays = {**pixels_lib.none(self.pixels), **self._pack("")[0], "bad": _BAD}
    return {**arrays, "image_item": np.ones(1, np.int32), "weights": arrays["weights"] * 0}


class Mask(Processor):
  """Masks for the mask codec.

  Args:
    size: side of the square, 64 for PaliGemma's codec.

  Rows: `mask` float32 [size, size, 1] in [0, 1], `weights` float32 [1], `bad` int32 [].
  """

  def __init__(self, size: int = 64):
    self.size = ops.pair(size)

  def row(self, example, rng):
    record = str(example.get("id", ""))
    if "mask" not in example:
      raise BadExample("has no field 'mask'", record)
    mask = np.asarray(example["mask"])
    if mask.ndim == 3 and mask.shape[-1] == 1:
      mask = mask[..., 0]
    if mask.ndim != 2 or not mask.size:
      raise BadExample(f"mask of shape {list(mask.shape)}; want [H, W]", record)
    if mask.dtype == np.uint8 and mask.max() > 1:
      mask = mask / np.float32(255)
    mask = mask.astype(np.float32)
    if not (mask.min() >= 0 and mask.max() <= 1):
      raise BadExample(f"mask values {mask.min()}..{mask.max()}; want 0..1", record)
    if mask.shape != self.size:
      img = Image.fromarray(mask).resize(self.size[::-1], Image.Resampling.BILINEAR)
      mask = np.clip(np.asarray(img, np.float32), 0, 1)
    return dict(mask=mask[..., None], weights=np.ones(1, np.float32), bad=_GOOD), False

  def prompt(self, example):
    return self(example, np.random.default_rng(0))

  def blank(self):
    zeros = np.zeros((*self.size, 1), np.float32)
    return dict(mask=zeros, weights=np.zeros(1, np.float32), bad=_BAD)


KINDS = ("prefix_lm", "seq2seq", "contrastive", "mask")
_FIELDS = ("kind", "image", "tokenizer", "text_len", "read_len", "target_len", "sep")
_IMAGE = ("size", "count", "method", "antialias", "backend", "reduce", "max_pixels", "max_bytes")


def make(
  cfg: Mapping[str, Any],
  *,
  tokenizer: tokenizers.SentencePiece | None = None,
  image_tokens: int = 0,
  grid: tuple[int, int] | None = None,
  workdir: str | os.PathLike | None = None,
) -> Processor:
  """Builds a processor of `config.processor`.

  Args:
    cfg: `dict(kind=..., image=dict(size=, ...), tokenizer=dict(...), text_len=, read_len=,
      target_len=, sep=)`, the kind one of `KINDS`.
    tokenizer: instead of the one that `cfg.tokenizer` names.
    image_tokens: rows of the connector for the pictures of an example (prefix_lm, seq2seq).
    grid: patch grid (h, w).
    workdir: what "workdir:FILE" paths are relative to.
  """
  for key in cfg:
    if key not in _FIELDS:
      raise ValueError(names.unknown("field of processor", key, _FIELDS))
  image = dict(cfg.get("image", {}))
  for key in image:
    if key not in _IMAGE:
      raise ValueError(names.unknown("field of processor.image", key, _IMAGE))
  kind = cfg.get("kind", "prefix_lm")
  if kind not in KINDS:
    raise ValueError(names.unknown("processor", kind, KINDS))
  if kind == "mask":
    return Mask(image.get("size", 64))
  if "size" not in image:
    raise ValueError("processor.image.size is missing")
  if tokenizer is None:
    if not cfg.get("tokenizer"):
      raise ValueError("processor.tokenizer is missing: dict(kind='sentencepiece', path=...)")
    tokenizer = tokenizers.make(cfg["tokenizer"], workdir)
  count = image.pop("count", 1)
  if count != 1 and kind != "prefix_lm":
    raise ValueError(f"processor.image.count={count} is for kind='prefix_lm'; {kind!r} takes one")
  pixels = pixels_lib.Pixels(**image)
  text_len = cfg.get("text_len", 64)
  if kind == "contrastive":
    return Contrastive(pixels, tokenizer, text_len=text_len, grid=grid)
  if kind == "seq2seq":
    lengths = dict(text_len=text_len, target_len=cfg.get("target_len", 64))
    return Seq2Seq(pixels, tokenizer, image_tokens=image_tokens, grid=grid, **lengths)
  return PrefixLM(
    pixels,
    tokenizer,
    image_tokens=image_tokens,
    grid=grid,
    text_len=text_len,
    read_len=cfg.get("read_len", 0),
    sep=cfg.get("sep", "\n"),
    images=count,
  )
