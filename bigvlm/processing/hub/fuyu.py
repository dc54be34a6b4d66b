"""Processor of Fuyu: patches straight in, a newline token behind each row of them."""

from bigvlm.processing.hub.expanding import Expanding

_NEWLINE, _START, _ANSWER = "|NEWLINE|", "<s>", "<0x04>"


class Fuyu(Expanding):
  """The image, a start token, the prompt, and a token where the answer begins.

  The two parts are tokenised apart, and the space that this puts in front of the image is left
  out; rows are padded on the left.
  """

  def __init__(self, parts):
    tokenizer = parts.tokenizer
    super().__init__(parts, "|SPEAKER|")
    self.image_token = "|SPEAKER|"
    if tokenizer.id(_NEWLINE) is None:
      raise ValueError(f"the tokenizer files lack {_NEWLINE}")
    tokenizer.special["pad_token"] = tokenizer.backend.id_to_token(0)

  def place(self, size, pixels, alone):
    rows, columns = pixels.grid(size)
    return (self.image_token * columns + _NEWLINE) * rows + _START

  def _batch(self, call):
    if call.groups is None:
      return super()._batch(call)
    texts = [""] if call.texts is None else call.texts
    if len(texts) != len(call.groups):
      raise ValueError(f"there are {len(texts)} texts, but {len(call.groups)} images")
    for n, group in enumerate(call.groups):
      if len(group) > 1:
        raise ValueError(f"images[{n}] has {len(group)} images; Fuyu takes one a text")
    call.texts = [
      self.image_token * len(g) + t + (_ANSWER if call.texts is not None else "")
      for g, t in zip(call.groups, texts, strict=True)
    ]
    return super()._batch(call)

  def _text(self, call, texts=None):
    if call.groups is None:
      return super()._text(call, texts)
    rows = []
    for n, text in enumerate(texts):
      head, start, rest = text.partition(_START)
      ids = self.tokenizer.encode(rest if start else head, special=False)[0]
      if start:
        ahead = self.tokenizer.encode(head + start, special=False)[0]
        spaced = ahead[0] != self.tokenizer.id(self.image_token)
        ids = [*ahead[spaced:], *ids]
      rows.append((ids, [] if call.suffixes is None else self._answer(call.suffixes[n])))
    found = self._answered(rows, call.text | {"padding": "longest", "padding_side": "left"})
    if call.suffixes is None:
      del found["labels"]
    return found

  def placed(self, prompts, groups, videos):
    return list(prompts)
