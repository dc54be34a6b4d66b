"""big_vision's preprocessing of pictures and texts, for its `.npz` checkpoints.

Reference: google-research/big_vision, `pp/ops_image.py`, `ops_text.py`, `ops_general.py`,
`pp/proj/image_text/ops_naflex.py`, `pp/proj/paligemma/ops.py` and the configs and demos of SigLIP,
SigLIP 2 and PaliGemma. No file beside a checkpoint says how it was trained: its model and the sizes
of its tables do.
"""

import dataclasses
import pathlib
from typing import Any

import numpy as np

from bigvlm.processing import tf_resize
from bigvlm.processing import tokenizer as pieces_lib
from bigvlm.processing.hub import base
from bigvlm.processing.hub.images import ImageProcessor
from bigvlm.processing.hub.tokenizers import Text
from bigvlm.utils import names

# Names of tokenisers in big_vision's configs -> where it reads them.
KNOWN = {
  "c4_en": "gs://t5-data/vocabs/cc_en.32000/sentencepiece.model",
  "mc4": "gs://t5-data/vocabs/mc4.250000.100extra/sentencepiece.model",
  "gemma": "gs://big_vision/gemma_tokenizer.model",
}
_VOCABULARIES = {32_000: "c4_en", 250_000: "mc4", 256_000: "gemma"}
_FILES = ("tokenizer.model", "sentencepiece.model")
_EOS = 1  # Also what pads the texts of SigLIP: `pad_value=1`.


def _in_range(x: np.ndarray) -> np.ndarray:
  """0..255 to float32 in [-1, 1], as `value_range(-1, 1)`."""
  return np.float32(-1) + x.astype(np.float32) / np.float32(255) * np.float32(2)


@dataclasses.dataclass(frozen=True)
class Squeezed(ImageProcessor):
  """`resize(size)|value_range(-1, 1)`: `image` float32 [N, H, W, 3]; the aspect ratio is not kept.

  Attributes:
    antialias: of the bilinear resizing; see `tf_resize`.
  """

  antialias: bool = False
  output: str = "image"
  KEYS = {"antialias": "antialias", "size": "size"}

  def sized(self, x):
    return tf_resize.resize_as(x, self.shape(), self.antialias)

  def finish(self, x):
    return _in_range(x)


@dataclasses.dataclass(frozen=True)
class NaFlex(ImageProcessor):
  """`resize_to_sequence` and `patchify`: pictures in their own aspect ratio as rows of patches.

  `patches` float32 [N, P, patch * patch * 3] in [-1, 1], and int32 [N, P] `ptype` (1 = a patch),
  `yabs` and `xabs`.
  """

  patch: int = 16
  max_patches: int = 256
  KEYS = {"max_num_patches": "max_patches"}

  def batch(self, groups):
    arrays = [x for group in groups for x in group]
    p, rows = self.patch, self.max_patches
    patches = np.zeros((len(arrays), rows, p * p * 3), np.float32)
    kind, y, x = np.zeros((3, len(arrays), rows), np.int32)
    for n, image in enumerate(arrays):
      size = sequence_size(image.shape[:2], p, rows)
      pixels = tf_resize.resize(_in_range(image), size, antialias=True)
      h, w = size[0] // p, size[1] // p
      parts = pixels.reshape(h, p, w, p, 3).transpose(0, 2, 1, 3, 4)
      patches[n, : h * w] = parts.reshape(h * w, -1)
      kind[n, : h * w] = 1
      y[n, : h * w], x[n, : h * w] = np.divmod(np.arange(h * w), w)
    return {"patches": patches, "ptype": kind, "yabs": y, "xabs": x}


def sequence_size(size: tuple[int, int], patch: int, most: int) -> tuple[int, int]:
  """The largest (height, width) of that aspect ratio in whole patches, at most `most` of them.

  The binary search of the reference, in its float32.
  """
  sides = np.asarray(size, np.float32)

  def scaled(ratio: np.float32) -> np.ndarray:
    whole = patch * np.ceil(sides * ratio / np.float32(patch))
    return np.maximum(whole, patch).astype(np.int32)

  step = np.float32(1e-5)
  low, high = step / np.float32(10), np.float32(100)
  while high - low >= step:
    middle = (low + high) / np.float32(2)
    if np.prod(scaled(middle) / patch) <= most:
      low = middle
    else:
      high = middle
  height, width = scaled(low).tolist()
  return height, width


class Pieces(Text):
  """A sentencepiece model: its ids and an end token, which stays when a text is cut.

  Args:
    model: the file. pad: id that fills rows up. length: of rows, or None.
    lower: whether text becomes lower-case, which TensorFlow does to ASCII letters alone.
  """

  def __init__(
    self, model: pieces_lib.SentencePiece, pad: int, length: int | None = None, lower: bool = False
  ):
    super().__init__({}, {}, {"model_max_length": length, "model_input_names": ["input_ids"]})
    self._model, self._pad, self._lower = model, pad, lower

  @property
  def bos(self):
    return self._model.bos

  @property
  def eos(self):
    return self._model.eos

  @property
  def pad(self):
    return self._pad

  @property
  def vocab_size(self):
    return self._model.vocab_size

  def id(self, token):
    found = self._model.encode(token)
    return found[0] if len(found) == 1 else None

  def encode(self, text, pair=None, *, special=True, limit=None):
    text = text.encode().lower().decode() if self._lower else text
    ids = self._model.encode(text + (pair or ""))
    if limit is not None:
      ids = ids[: limit - special]
    ids = [*ids, self.eos] if special else ids
    return ids, [0] * len(ids)

  def decode(self, ids, *, skip_special=True):
    """The text of ids; BOS, EOS and padding are left out either way."""
    return self._model.decode(ids)


class TwoTowers(base.Processor):
  """`image` (or NaFlex's patches) and `text` int32 [B, length], by themselves or together."""

  text_defaults = {"padding": "max_length", "truncation": True}

  def _text(self, call, texts=None):
    if call.suffixes is not None:
      raise ValueError("a dual encoder has no suffix")
    return {"text": super()._text(call, texts)["input_ids"].astype(np.int32)}


class PaliGemma(base.Processor):
  """`combine_and_keep_train` and `combine_and_keep_eval` of its transfers.

  `image` float32 [B, H, W, 3], or [B, F, H, W, 3] for F pictures or frames of each text; `text`,
  `mask_ar`, `input_mask` int32 [B, T]: BOS, the prompt and a line break, which all see each other
  (`mask_ar` 0), then the suffix and EOS (1), then padding (1); with a suffix `mask_loss` too.
  """

  SIDE = "right"

  def _batch(self, call):
    if call.groups is None:
      raise ValueError("PaliGemma's processor needs images")
    texts = [""] * len(call.groups) if call.texts is None else call.texts
    counts = [len(group) for group in call.groups]
    if len(counts) != len(texts):
      what = "lists of images" if call.nested else "images"
      raise ValueError(f"there are {len(texts)} texts, but {len(counts)} {what}; give one for each")
    for n, count in enumerate(counts):
      if count != counts[0]:
        raise ValueError(f"text[{n}] has {count} images, but text[0] has {counts[0]}; give as many")
    pixels = call.images.batch(call.groups)["image"]
    if counts[0] != 1:
      pixels = pixels.reshape(len(texts), counts[0], *pixels.shape[1:])
    return {"image": pixels} | self._masked(texts, call.suffixes, call.text)

  def _masked(self, texts, suffixes, settings) -> dict[str, np.ndarray]:
    token, rows = self.tokenizer, []
    if settings.get("padding_side") == "left":
      raise ValueError("big_vision's prompts are padded on the right")
    first = [token.bos] if settings["add_special_tokens"] else []
    for text, suffix in zip(texts, suffixes or [None] * len(texts), strict=True):
      prefix, line = (token.encode(part, special=False)[0] for part in (text, "\n"))
      answer = [] if suffix is None else token.encode(suffix)[0]
      ids = [*first, *prefix, *line, *answer]
      rows.append((ids, [0] * (len(ids) - len(answer)) + [1] * len(answer)))
    length = settings.get("max_length")
    if settings["truncation"] and length is not None:
      rows = [(ids[:length], kinds[:length]) for ids, kinds in rows]
    found = token.padded(
      rows,
      padding=settings["padding"],
      length=length,
      multiple=settings.get("pad_to_multiple_of"),
      side="right",
    )
    real, kinds = found["attention_mask"], found["token_type_ids"]
    out = {"text": found["input_ids"], "mask_ar": np.where(real > 0, kinds, 1), "input_mask": real}
    out |= {} if suffixes is None else {"mask_loss": kinds}
    return {key: x.astype(np.int32) for key, x in out.items()}


def find(folder: pathlib.Path) -> pathlib.Path | None:
  """The sentencepiece model in a folder: one of the usual names, or the only `*.model`.

  Raises:
    ValueError: several, of which none has a usual name.
  """
  for name in _FILES:
    if (folder / name).is_file():
      return folder / name
  found = sorted(folder.glob("*.model"))
  if len(found) > 1:
    several = ", ".join(f.name for f in found)
    raise ValueError(f"{folder} has several tokenisers ({several}); call one {_FILES[0]}")
  return found[0] if found else None


def wanted(vocab: int) -> str:
  """What a folder without a tokeniser lacks, for messages."""
  name = _VOCABULARIES.get(vocab, "gemma" if vocab > 256_000 else "")
  return f"{_FILES[0]} beside its .npz" + (f" ({name}: {KNOWN[name]})" if name else "")


def two_towers(
  pixels: ImageProcessor, folder: pathlib.Path, name: str | None, vocab: int, length: int
) -> TwoTowers | None:
  """SigLIP's processor; None without a tokeniser.

  Args:
    pixels: of its pictures. folder: where the `.npz` lies.
    name: what the config calls the tokeniser, one of `KNOWN`; None = what the size of the
      vocabulary and NaFlex tell. It decides about padding: EOS, or Gemma's own.
    vocab, length: rows of the text tower's tables.
  """
  path = find(folder)
  if path is None:
    return None
  model = _read(path, extra=False)
  flexible = isinstance(pixels, NaFlex)
  name = name or _VOCABULARIES.get(vocab, "gemma" if flexible else "c4_en")
  own = names.lookup("tokenizer of big_vision", name, KNOWN) == KNOWN["gemma"]
  pad = (model.pad or 0) if own else _EOS
  return TwoTowers(base.Parts(pixels, Pieces(model, pad, length, lower=True)))


def paligemma(pixels: ImageProcessor, folder: pathlib.Path, vocab: int) -> PaliGemma | None:
  """PaliGemma's processor; None without a tokeniser.

  Raises:
    ValueError: a tokeniser without BOS, or whose EOS is not 1, which ends answers.
  """
  path = find(folder)
  if path is None:
    return None
  model = _read(path, extra=True)
  if model.vocab_size > vocab:  # A small model without places and masks.
    model = _read(path, extra=False)
  if model.bos is None or model.eos != _EOS:
    raise ValueError(f"{path}: PaliGemma's BOS must be there and its EOS {_EOS}, not {model.eos}")
  return PaliGemma(base.Parts(pixels, Pieces(model, model.pad or 0)))


def _read(path: pathlib.Path, **options: Any) -> pieces_lib.SentencePiece:
  model = pieces_lib.SentencePiece(path, **options)
  if model.eos is None:
    raise ValueError(f"tokeniser file '{path}' has no EOS")
  return model
