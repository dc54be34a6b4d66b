"""Processors of Pixtral and DeepSeek-VL."""

import dataclasses

import numpy as np

from bigvlm.processing.hub.expanding import Expanding


class Pixtral(Expanding):
  """A token for every patch, with a break behind each row and an end behind the last."""

  def __init__(self, parts):
    settings = parts.settings
    self.side = (settings.get("patch_size") or 16) * (settings.get("spatial_merge_size") or 1)
    parts = dataclasses.replace(parts, images=dataclasses.replace(parts.images, patch=self.side))
    mark = settings.get("image_token") or "[IMG]"
    super().__init__(parts, mark)
    self.image_token = mark
    self.row_end = settings.get("image_break_token") or "[IMG_BREAK]"
    self.end = settings.get("image_end_token") or "[IMG_END]"

  def place(self, size, pixels, alone):
    height, width = pixels.target(size)
    row = self.image_token * (width // self.side)
    return self.row_end.join([row] * (height // self.side)) + self.end

  def _types(self, ids):
    tokens = (self.image_token, self.row_end, self.end)
    return np.isin(ids, [self.tokenizer.id(t) for t in tokens]).astype(np.int64)


class DeepseekVL(Expanding):
  """A fixed number of tokens."""

  def __init__(self, parts):
    if "image_token" not in parts.tokenizer.extra:
      raise ValueError("tokenizer_config.json lacks image_token")
    super().__init__(parts)
    self.tokens = parts.settings.get("num_image_tokens") or 576

  def place(self, size, pixels, alone):
    return self.image_token * self.tokens
