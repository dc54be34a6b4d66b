"""Processor of InternVL: tiles of an image behind each other, one numbered line for each frame."""

import re

import numpy as np

from bigvlm.processing.hub.expanding import Expanding


class InternVL(Expanding):
  """`<img>`, the tokens of all tiles, `</img>`; frames of a video stand among the images."""

  HIDDEN = ("num_patches", "pixel_values_videos")
  text_defaults = {"padding_side": "left"}
  image_defaults = {"crop_to_patches": True}

  def __init__(self, parts):
    extra = parts.tokenizer.extra
    names = ("start_image_token", "end_image_token", "context_image_token", "video_token")
    lacking = [n for n in names if n not in extra]
    if lacking:
      raise ValueError(f"tokenizer_config.json lacks {lacking[0]}")
    super().__init__(parts, extra[names[2]], extra[names[3]])
    self.start, self.end, self.image_token, self.video_token = (extra[n] for n in names)
    self.tokens = parts.settings.get("image_seq_length") or 256

  def _tiles(self, count: int) -> str:
    return f"{self.start}{self.image_token * self.tokens * count}{self.end}"

  def place(self, size, pixels, alone):
    return self._tiles(pixels.count(size))

  def video_place(self, clip, number, found):
    count = len(found["pixel_values_videos"][number])
    return "\n".join(f"Frame{n}: {self._tiles(1)}" for n in range(1, count + 1))

  def _batch(self, call):
    if call.texts is None:
      raise ValueError("InternVL's processor needs text")
    return super()._batch(call)

  def _ordered(self, call, found):
    pixels = {self.image_token: iter(()), self.video_token: iter(())}
    if call.groups is not None:
      ends = np.cumsum(found["num_patches"])[:-1]
      pixels[self.image_token] = iter(np.split(found["pixel_values"], ends))
    if call.clips is not None:
      pixels[self.video_token] = iter(found["pixel_values_videos"])
    marks = "|".join(map(re.escape, pixels))
    order = [m.group() for text in call.texts for m in re.finditer(marks, text)]
    parts = [next(pixels[mark]) for mark in order]
    return found | ({"pixel_values": np.concatenate(parts)} if parts else {})
