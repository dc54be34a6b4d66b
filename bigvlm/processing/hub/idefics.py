"""Processors of Idefics 1, 2 and 3, and of SmolVLM."""

import datetime
import itertools
from typing import Any

import numpy as np
from tokenizers import AddedToken

from bigvlm.processing.hub import decoded, numerals
from bigvlm.processing.hub.base import Processor
from bigvlm.processing.hub.expanding import Expanding
from bigvlm.processing.hub.videos import RATE

_FAKE, _IMAGE, _END = "<fake_token_around_image>", "<image>", "<end_of_utterance>"


def _special(*tokens: str) -> list[AddedToken]:
  return [AddedToken(t, normalized=False, special=True) for t in tokens]


class Idefics3(Expanding):
  """Tiles of an image in lines, every tile with its row and column, then the whole image."""

  def __init__(self, parts):
    parts.tokenizer.add(_special(_FAKE, _IMAGE, _END))
    super().__init__(parts)
    self.tokens = parts.settings.get("image_seq_len") or 169
    self.fake, self.whole = _FAKE, "<global-img>"

  def place(self, size, pixels, alone):
    rows, columns = pixels.tiles(size)
    lines = []
    for row in range(1, rows + 1):
      tags = (f"{self.fake}<row_{row}_col_{n}>" for n in range(1, columns + 1))
      lines.append("".join(tag + self.image_token * self.tokens for tag in tags) + "\n")
    return "".join(lines) + ("\n" if lines else "") + self._one()

  def _one(self) -> str:
    """An image in one tile."""
    return f"{self.fake}{self.whole}{self.image_token * self.tokens}{self.fake}"


class SmolVLM(Idefics3):
  """Videos beside it: an introduction, and every frame as an image with its time."""

  def __init__(self, parts):
    Expanding.__init__(self, parts, video="<video>")
    extra = parts.tokenizer.extra
    self.tokens = parts.settings.get("image_seq_len") or 169
    self.fake = extra.get("fake_image_token", _FAKE)
    self.whole = extra.get("global_image_token", "<global-img>")

  def video_place(self, clip, number, found):
    frames = found["pixel_values"].shape[1]
    times = clip.times(RATE)
    length = datetime.timedelta(seconds=int(times[-1] if clip.duration is None else clip.duration))
    text = (
      f"You are provided the following series of {numerals.words(frames)} frames from a {length} "
      "[H:MM:SS] video.\n"
    )
    for t in times:
      text += f"\nFrame from {int(t // 60):02d}:{int(t % 60):02d}:{self._one()}"
    return text + "\n\n"


class Idefics2(Expanding):
  """A number of tokens between two marks, which neighbours share; five times for a split image."""

  OVER_WHITE = False

  def __init__(self, parts):
    extra = parts.tokenizer.extra
    self.fake = extra["image_boundary_token"] if "image_token" in extra else _FAKE
    if "image_token" not in extra:
      parts.tokenizer.add(_special(_FAKE, _IMAGE))
    parts.tokenizer.add(_special(_END))
    super().__init__(parts)
    self.tokens = parts.settings.get("image_seq_len") or 64

  def place(self, size, pixels, alone):
    one = f"{self.fake}{self.image_token * self.tokens}{self.fake}"
    return one * (5 if pixels.split else 1)

  def _text(self, call, texts=None):
    texts = [text.replace(self.fake * 2, self.fake) for text in texts]
    return super()._text(call, [_spaced(text, self.fake) for text in texts])


def _spaced(text: str, token: str) -> str:
  """A text with a space between a token and a word or mark that follows it, but "<"."""
  head, *parts = text.split(token)
  return head + "".join(
    token + (" " if part and not part[0].isspace() and part[0] != "<" else "") + part
    for part in parts
  )


class Idefics(Processor):
  """Idefics 1: a row is a list of texts and images, or a text with `<image>` marks.

  `pixel_values` float32 [B, I, 3, H, W] and `image_attention_mask` int64 [B, T, I]: every token
  sees the last image before it, up to an end token.
  """

  NEEDS = ("images", "tokenizer")
  text_defaults = {"add_special_tokens": False}

  def _batch(self, call):
    rows = self._rows(call)
    texts, groups = [], []
    for row in rows:
      texts.append(self._joined(row))
      groups.append([x for x in row if not isinstance(x, str)])
    found = self._text(call, texts)
    ids = found["input_ids"]
    most = max(1, *(len(g) for g in groups))
    height, width = call.images.shape()
    pixels = np.zeros((len(rows), most, 3, height, width), np.float32)
    for n, group in enumerate(groups):
      if group:
        pixels[n, : len(group)] = call.images.batch([group])["pixel_values"]
    seen = self._seen(ids, most) if any(groups) else np.zeros((*ids.shape, 1), bool)
    return found | {"pixel_values": pixels, "image_attention_mask": seen}

  def _rows(self, call: Any) -> list[list[Any]]:
    """Texts and images uint8 [H, W, 3] of every row, in reading order."""
    texts = call.texts
    if texts is None:
      raise ValueError("Idefics needs text")
    if call.groups is None:
      rows = [[t] if isinstance(t, str) else list(t) for t in texts]
      if any(_IMAGE in t for row in rows for t in row if isinstance(t, str)):
        raise ValueError(f"there are {_IMAGE} marks in the texts, but no images")
      return [
        [x if isinstance(x, str) else decoded.rgb(x, f"text[{n}]") for x in row]
        for n, row in enumerate(rows)
      ]
    if len(texts) != len(call.groups):
      raise ValueError(f"there are {len(texts)} texts, but {len(call.groups)} lists of images")
    rows = []
    for n, (text, group) in enumerate(zip(texts, call.groups, strict=True)):
      parts = text.split(_IMAGE)
      if len(parts) == 1:
        rows.append([text, *group] if call.nested else [*group, text])
        continue
      if len(parts) - 1 != len(group):
        raise ValueError(
          f"text[{n}] has {len(parts) - 1} {_IMAGE} marks, but there are {len(group)} images"
        )
      places = itertools.zip_longest(parts, group)
      rows.append([x for pair in places for x in pair if x is not None and not _blank(x)])
    return rows

  def _joined(self, row: list[Any]) -> str:
    """The prompt of a row; images side by side share a mark."""
    text = self.tokenizer.special["bos_token"]
    before: Any = None
    for x in row:
      if not isinstance(x, str):
        after = before is not None and not isinstance(before, str)
        text += ("" if after else _FAKE) + _IMAGE + _FAKE
      else:
        text += x.strip(" ")
      before = x
    return text

  def _seen(self, ids: np.ndarray, count: int) -> np.ndarray:
    """int64 [B, T, I]: 1 at the image that a token sees."""
    image = ids == self.tokenizer.id(_IMAGE)
    last = np.cumsum(image, axis=1) - 1
    seen = np.zeros((*ids.shape, count), np.int64)
    for b, row in enumerate(ids.tolist()):
      ended = False
      for t, token in enumerate(row):
        ended = ended and not image[b, t]
        if not ended and 0 <= last[b, t] < count:
          seen[b, t, last[b, t]] = 1
        ended = ended or token == self.tokenizer.eos
    return seen

  def placed(self, prompts, groups, videos):
    return [
      prompt if _IMAGE in prompt else _IMAGE * len(group) + prompt
      for prompt, group in zip(prompts, groups, strict=True)
    ]


def _blank(x: Any) -> bool:
  return isinstance(x, str) and not x
