"""Processor of Llama 3.2-Vision: images beside the text, and which tokens see which of them."""

import numpy as np

from bigvlm.processing.hub.expanding import Expanding


class Mllama(Expanding):
  """One token an image; `cross_attention_mask` int64 [B, T, images, tiles].

  A token sees the image before it; images side by side see on to where the last of them does.
  """

  STARTS = True

  def __init__(self, parts):
    super().__init__(parts, "<|image|>")
    if "bos_token" not in parts.tokenizer.special:
      raise ValueError("tokenizer_config.json lacks bos_token")
    self.start = parts.tokenizer.special["bos_token"]

  def place(self, size, pixels, alone):
    pixels.tiles(size)
    return self.image_token

  def _text(self, call, texts=None):
    return super()._text(call, [self._started(text) for text in texts])

  def _started(self, text: str) -> str:
    """A prompt with its start behind the images that stand in front."""
    if self.start in text:
      return text
    rest = text
    while rest.startswith(self.image_token):
      rest = rest.removeprefix(self.image_token)
    return text[: len(text) - len(rest)] + self.start + rest

  def _ordered(self, call, found):
    if call.groups is None:
      return found
    counts = found["aspect_ratio_mask"].sum(axis=-1)
    spans = [self._spans(row) for row in found["input_ids"]]
    most = max(map(len, spans), default=0)
    shape = (*found["input_ids"].shape, most, call.images.most)
    mask = np.zeros(shape, np.int64)
    for b, row in enumerate(spans):
      for n, (start, end) in enumerate(row):
        mask[b, start:end, n, : counts[b, n]] = 1
    return found | {"cross_attention_mask": mask}

  def _spans(self, ids: np.ndarray) -> list[tuple[int, int]]:
    """First and last token (and one) that see each image of a row."""
    at = np.flatnonzero(ids == self.tokenizer.id(self.image_token)).tolist()
    found: list[tuple[int, int]] = []
    end = len(ids)
    for n in reversed(range(len(at))):
      after = at[n + 1] if n + 1 < len(at) else len(ids)
      end = end if after == at[n] + 1 else after
      found.insert(0, (at[n], end))
    return found
