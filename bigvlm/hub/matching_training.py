"""Rows of pictures with their texts, for models that match them (see `bigvlm.models.matching`)."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from bigvlm.hub import human, inputs, load
from bigvlm.processing import processor
from bigvlm.processing.image import BadExample

KINDS = ("matching",)  # Of `System.inputs`.
_PICTURE = np.zeros((48, 64, 3), np.uint8)


class PairProcessor(processor.Processor):
  """A picture and a text, which is the prefix and the suffix of a record, as the checkpoint's own
  processor prepares them.

  `tokens` are the text, with nothing of a picture in front; `target_tokens` are the same to be
  written, from the tokenizer's start token on (in place of the first, as in LAVIS'
  `Blip2Qformer`), and `labels` and `weights` [text_len - 1] are of its next tokens.

  Args:
    source: hub id or directory with weights, tokenizer and preprocessor files.
    text_len: positions of the text; what is longer is cut.

  Raises:
    ValueError: no tokenizer files, no start token, or a text longer than the position table.
  """

  def __init__(self, source: str, *, text_len: int):
    self.model = load.bare(source)
    if self.model.processor is None or self.model.processor.tokenizer is None:
      raise ValueError(f"{source} has no tokenizer files, which processor.kind='checkpoint' needs")
    self.tokenizer = self.model.processor.tokenizer
    if self.tokenizer.bos is None:
      raise ValueError(f"{source}: tokenizer_config.json names no bos_token, that texts start with")
    most = self.model.module.connector.length
    if not 1 < text_len <= most:
      raise ValueError(f"processor.text_len={text_len} is not 2 to {most}, which {source} reads")
    self.text_len = text_len

  def row(self, example, rng):
    record = str(example.get("id", ""))
    for field in ("prefix", "suffix"):
      if not isinstance(example.get(field), str):
        raise BadExample(f"has no text in its field {field!r}", record)
    text = " ".join(part for part in (example["prefix"], example["suffix"]) if part)
    try:
      pictures = human.media_of(example.get("image", ()))
      if len(pictures) != 1:
        raise ValueError(f"has {len(pictures)} pictures, not the one that its text is of")
      arrays, cut = self._arrays(pictures[0], text)
    except (ValueError, OSError) as e:  # Of a picture too, which knows no record.
      raise BadExample(str(e), record) from None
    return {**arrays, "bad": np.zeros((), np.int32)}, cut

  def blank(self):
    arrays, _ = self._arrays(_PICTURE, "")
    return {**arrays, "weights": arrays["weights"] * 0, "bad": np.ones((), np.int32)}

  def _arrays(self, picture: Any, text: str) -> tuple[processor.Arrays, bool]:
    length = self.text_len
    given = self.model.processor(images=[picture])
    media = inputs.media(given["pixel_values"])
    settings = dict(padding="max_length", truncation=True, max_length=length, padding_side="right")
    found = self.tokenizer([text], **settings)
    whole = len(self.tokenizer.encode(text)[0])
    tokens = inputs.ids(found["input_ids"], self.model.module.connector.vocab, "the text")
    mask = found["attention_mask"].astype(np.int32)
    wanted = tokens.copy()
    wanted[:, 0] = self.tokenizer.bos
    read = np.arange(length - 1, dtype=np.int32)[None]
    out = {"image": media.pixels[0], "image_item": media.item[0]}
    out |= inputs.arrays(inputs.text(tokens, mask, 0, read))
    out |= inputs.arrays(inputs.text(wanted, mask, 1, read), "target_")
    out["labels"] = tokens[0, 1:]
    out["weights"] = mask[0, 1:].astype(np.float32)
    return out, whole > length


def make(cfg: Mapping[str, Any]) -> PairProcessor:
  """The processor of `config.processor`, whose other lengths pairs have no use for."""
  return PairProcessor(cfg["source"], text_len=cfg.get("text_len", 32))
