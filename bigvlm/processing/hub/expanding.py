"""Processors that put as many tokens into a prompt as an image or a video takes.

How many those are follows from the size of an image alone (`Expanding.place`), so that it is known
before the image is read (`Expanding.count`).
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from bigvlm.processing.hub.base import Call, Processor, check_places, one_each
from bigvlm.processing.hub.images import ImageProcessor
from bigvlm.processing.tiling import Size
from bigvlm.processing.video import Clip


class Expanding(Processor):
  """A mark in the prompt for each image and each video, which becomes what `place` says.

  Attributes:
    image_token, video_token: the marks, and the tokens that the model replaces; video_token may
      be None, and the tokens of a video may be `image_token`.
    HIDDEN: outputs of the image processor that the model does not take.
    TYPES: whether `mm_token_type_ids` are wanted: 1 at image tokens, 2 at video tokens.
  """

  HIDDEN: tuple[str, ...] = ()
  TYPES = False

  def __init__(self, parts, image: str = "<image>", video: str | None = None):
    super().__init__(parts)
    extra = self.tokenizer.extra
    self.image_token = extra.get("image_token", image)
    self.video_token = extra.get("video_token", video) if self.videos is not None else None
    for token in (self.image_token, self.video_token):
      if token is not None and self.tokenizer.id(token) is None:
        raise ValueError(f"the tokenizer files lack {token}, which marks the place of an image")

  def place(self, size: Size, pixels: ImageProcessor, alone: bool) -> str:
    """What the mark of an image becomes.

    Args:
      size: (height, width) of the image. pixels: its processor. alone: whether there is no other
        image in its prompt.
    """
    raise NotImplementedError

  def video_place(self, clip: Clip, number: int, found: dict[str, Any]) -> str:
    """What the mark of a video becomes: the `number`-th of the videos that became `found`."""
    raise NotImplementedError

  def count(self, shape: Size, /, *, alone: bool = True, **settings: Any) -> int:
    """Image tokens of an image of (height, width) `shape`, which need not be there.

    Args:
      alone: whether there is no other image in its prompt.
      **settings: as in `preprocessor_config.json`.
    """
    return self.place(shape, self._changed(settings)[0], alone).count(self.image_token)

  def _batch(self, call):
    found: dict[str, Any] = {}
    places: dict[str, list[str]] = {}
    if call.groups is not None:
      self._check(call)
      found |= call.images.batch(call.groups)
      places[self.image_token] = [
        self.place(x.shape[:2], call.images, len(group) == 1)
        for group in call.groups
        for x in group
      ]
    elif call.texts is not None:
      self._check(call)
    if call.clips is not None:
      frames = call.videos.clip_batch(call.clips)
      if self.video_token is not None:
        places[self.video_token] = [
          self.video_place(clip, n, frames) for n, clip in enumerate(call.clips)
        ]
      found |= frames
    if call.texts is None:
      return {k: v for k, v in found.items() if k not in self.HIDDEN}
    prompts = expanded(call.texts, {token: iter(texts) for token, texts in places.items()})
    text = self._text(call, prompts)
    self._finish(text, prompts)
    found = self._ordered(call, text | found)
    return {k: v for k, v in found.items() if k not in self.HIDDEN}

  def _finish(self, text: dict[str, np.ndarray], prompts: list[str]) -> None:
    """Checks the ids of the expanded prompts, and adds their types."""
    ids = text["input_ids"]
    for token in (self.image_token, self.video_token):
      if token is not None:
        check_places(ids, self.tokenizer.id(token), prompts, token)
    if self.TYPES:
      text["mm_token_type_ids"] = self._types(ids)

  def _types(self, ids: np.ndarray) -> np.ndarray:
    types = (ids == self.tokenizer.id(self.image_token)).astype(np.int64)
    if self.video_token is not None:
      types += 2 * (ids == self.tokenizer.id(self.video_token))
    return types

  def _ordered(self, call: Call, found: dict[str, Any]) -> dict[str, Any]:
    """The arrays of a call, the hidden ones too, once its text is known."""
    return found

  def _check(self, call: Call) -> None:
    """Checks marks and media, and hands the images to the texts that mark them."""
    if call.texts is None:
      if call.images.ROWS and not call.nested:
        call.groups = [[x for group in call.groups for x in group]]
      return
    marks = [text.count(self.image_token) for text in call.texts]
    one_each(marks, call.groups, call.nested, self.image_token)
    if call.groups is not None and call.images.ROWS and not call.nested:
      left = iter([x for group in call.groups for x in group])
      call.groups = [[next(left) for _ in range(want)] for want in marks]
    if self.video_token is not None:
      wanted = sum(text.count(self.video_token) for text in call.texts)
      if wanted != len(call.clips or ()):
        raise ValueError(
          f"the texts have {wanted} {self.video_token} marks, but there are "
          f"{len(call.clips or ())} videos"
        )

  def placed(self, prompts, groups, videos):
    found = []
    for prompt, group, clips in zip(prompts, groups, videos, strict=True):
      if clips and self.video_token is not None and self.video_token not in prompt:
        prompt = self.mark(self.video_token) * clips + prompt
      if self.image_token not in prompt:
        prompt = self.mark(self.image_token) * len(group) + prompt
      found.append(prompt)
    return found

  def mark(self, token: str) -> str:
    """A mark as the system's prompts have it, with what belongs around it."""
    return token


def expanded(texts: Sequence[str], places: dict[str, Iterator[str]]) -> list[str]:
  """Texts in which every mark has become the next of its places.

  Args:
    texts: with marks. places: mark -> texts in the order of the marks.
  """
  found = []
  for text in texts:
    out = ""
    while True:
      at, token = min(
        ((text.find(t), t) for t in places if t in text), default=(-1, ""), key=lambda x: x[0]
      )
      if at < 0:
        break
      out += text[:at] + next(places[token])
      text = text[at + len(token) :]
    found.append(out + text)
  return found
