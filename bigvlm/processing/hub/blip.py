"""Processors of BLIP-2 and InstructBLIP: query tokens in front of all else."""

import numpy as np
from tokenizers import AddedToken

from bigvlm.processing.hub.base import Call, Processor


class Blip2(Processor):
  """The places of the query tokens stand in front of the text, also of its start and padding."""

  NAME = "image"
  EACH = 1  # Times that the query tokens stand there.

  def __init__(self, parts, targets=False):
    super().__init__(parts, targets)
    name = f"{self.NAME}_token"
    self.mark = self.tokenizer.extra.get(name, f"<{self.NAME}>")
    if name not in self.tokenizer.extra:
      self.tokenizer.add([AddedToken(self.mark, normalized=False, special=True)])
    self.queries = parts.settings.get("num_query_tokens")

  @property
  def ahead(self):
    return (self.queries or 0) * self.EACH

  def _media(self, call: Call) -> dict[str, np.ndarray] | None:
    return None if call.groups is None else call.images.batch(call.groups)

  def _batch(self, call):
    media = self._media(call)
    if call.texts is None:
      return media or {}
    limit = call.text.get("max_length")
    if limit is not None and self.queries:
      call.text = call.text | {"max_length": limit - self.queries}
    found = self._text(call)
    found.pop("token_type_ids", None)
    if media is None:
      return found
    if len(next(iter(media.values()))) != len(call.texts):
      count = len(next(iter(media.values())))
      raise ValueError(f"there are {len(call.texts)} texts, but {count} {self.NAME}s")
    number = self.tokenizer.id(self.mark)
    ahead = dict(input_ids=number, attention_mask=1, labels=-100)
    if self.targets:
      del ahead["labels"]  # The decoder's own.
    for key, value in ahead.items():
      if key in found:
        front = np.full((len(call.texts), self.ahead), value, np.int64)
        found[key] = np.concatenate([front, found[key]], axis=1)
    return found | media


class InstructBlip(Blip2):
  """The Q-Former reads the text too: `qformer_input_ids` and `qformer_attention_mask`."""

  NEEDS = ("images", "tokenizer", "qformer")

  def __init__(self, parts, targets=False):
    super().__init__(parts, targets)
    self.qformer = parts.qformer

  def _text(self, call, texts=None):
    # Its positions count from the left: it is padded on its own side, whatever the text's is.
    settings = {k: v for k, v in call.text.items() if k != "padding_side"}
    limit = settings.get("max_length")
    if limit is not None and self.queries:
      settings = settings | {"max_length": limit + self.queries}
    read = self.qformer(call.texts, **settings)
    mine = {f"qformer_{k}": read[k] for k in ("input_ids", "attention_mask")}
    return mine | super()._text(call, texts)


class InstructBlipVideo(InstructBlip):
  """Four frames of a video, each with its query tokens; videos are also taken as images."""

  NEEDS = ("videos", "tokenizer", "qformer")
  NAME = "video"
  EACH = FRAMES = 4

  def __call__(self, images=None, text=None, suffix=None, videos=None, **settings):
    videos = images if videos is None else videos
    return super().__call__(None, text, suffix, videos, **settings)

  def _media(self, call):
    return None if call.clips is None else call.videos.clip_batch(call.clips)
