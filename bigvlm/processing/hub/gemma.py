"""Processors of PaliGemma and Gemma 3."""

import numpy as np
from tokenizers import AddedToken

from bigvlm.processing import boxes
from bigvlm.processing.hub.base import Call, Processor, check_places, one_each
from bigvlm.processing.hub.tokenizers import FastText


class PaliGemma(Processor):
  """`<image>...<bos>prompt\\n`, the suffix and an end token behind it (arXiv 2407.07726).

  Images stand where the prompt says `<image>`; a prompt without any has its images in front.
  """

  MARK = "<image>"

  def __init__(self, parts):
    super().__init__(parts)
    tokenizer = self.tokenizer
    if self.images.tokens is None:
      raise ValueError("preprocessor_config.json lacks image_seq_length, the tokens of an image")
    if not isinstance(tokenizer, FastText):
      raise ValueError("PaliGemma needs a tokenizer of its own kind, not SigLIP's")
    lacking = [n for n in ("bos_token", "eos_token") if n not in tokenizer.special]
    if lacking:
      raise ValueError(f"PaliGemma's tokenizer_config.json lacks {lacking[0]}")
    self.image_token = tokenizer.extra.get("image_token", self.MARK)
    if "image_token" not in tokenizer.extra:
      tokenizer.add([AddedToken(self.MARK, normalized=False, special=True)])
    tokenizer.add([f"<loc{i:04d}>" for i in range(boxes.LOCS)])
    tokenizer.add([f"<seg{i:03d}>" for i in range(boxes.SEGS)])
    tokenizer.surround(bos=False, eos=False)

  def _batch(self, call):
    if call.groups is None:
      raise ValueError("PaliGemma's processor needs images")
    texts = [""] * len(call.groups) if call.texts is None else call.texts
    if not any(self.MARK in text for text in texts):
      _paired(call, texts)
      texts = [self.MARK * len(g) + text for g, text in zip(call.groups, texts, strict=True)]
    one_each([text.count(self.MARK) for text in texts], call.groups, call.nested, self.MARK)
    bos, eos = (self.tokenizer.special[f"{name}_token"] for name in ("bos", "eos"))
    prompts = []
    for text in texts:
      at = text.rfind(self.MARK)
      at += len(self.MARK) if at >= 0 else 1
      text = f"{text[:at]}{bos}{text[at:]}\n"
      prompts.append(text.replace(self.MARK, self.image_token * call.images.tokens))
    pairs = None if call.suffixes is None else [suffix + eos for suffix in call.suffixes]
    found = self.tokenizer(prompts, pairs, types=True, **call.text)
    ids, types = found["input_ids"], found["token_type_ids"]
    check_places(ids, self.tokenizer.id(self.image_token), prompts, self.image_token)
    found["labels"] = np.where(types == 0, -100, ids)
    return found | call.images.batch(call.groups)


class Gemma3(Processor):
  """A place for an image becomes its tokens, with a mark on each side and empty lines around."""

  image_defaults = {
    "do_pan_and_scan": False,
    "pan_and_scan_min_crop_size": 256,
    "pan_and_scan_max_num_crops": 4,
    "pan_and_scan_min_ratio_to_activate": 1.2,
  }

  def __init__(self, parts):
    super().__init__(parts)
    extra = self.tokenizer.extra
    lacking = [n for n in ("boi", "eoi", "image") if f"{n}_token" not in extra]
    if lacking:
      raise ValueError(f"tokenizer_config.json lacks {lacking[0]}_token")
    self.mark, end, self.image_token = (extra[f"{n}_token"] for n in ("boi", "eoi", "image"))
    tokens = parts.settings.get("image_seq_length") or 256
    self.place = f"\n\n{self.mark}{self.image_token * tokens}{end}\n\n"

  def _batch(self, call):
    pixels, texts = {}, call.texts
    if call.groups is not None:
      if texts is None:
        together = call.groups if call.nested else [sum(call.groups, [])]
        texts = [" ".join([self.mark] * len(g)) for g in together]
      one_each([text.count(self.mark) for text in texts], call.groups, call.nested, self.mark)
      pixels = call.images.batch(call.groups)
    elif any(self.mark in text for text in texts):
      one_each([text.count(self.mark) for text in texts], None, False, self.mark)
    crops = iter(pixels.pop("num_crops", ()))
    prompts = []
    for text in texts:
      head, *rest = text.split(self.mark)
      prompts.append(head + "".join(self._places(next(crops)) + part for part in rest))
    found = self._text(call, prompts)
    number = self.tokenizer.id(self.image_token)
    check_places(found["input_ids"], number, prompts, self.image_token)
    found["token_type_ids"] = (found["input_ids"] == number).astype(np.int64)
    return found | pixels

  def placed(self, prompts, groups, videos):
    return [
      prompt if self.mark in prompt else self.mark * len(group) + prompt
      for prompt, group in zip(prompts, groups, strict=True)
    ]

  def _places(self, crops: int) -> str:
    """What one image becomes in the prompt."""
    if not crops:
      return self.place
    more = " ".join([self.place] * int(crops))
    return (
      f"Here is the original image {self.place} and here are some crops to help you see better "
      + more
    )


def _paired(call: Call, texts: list[str]) -> None:
  """Checks that there are images for every text."""
  if len(call.groups) != len(texts):
    what = "lists of images" if call.nested else "images"
    raise ValueError(
      f"there are {len(texts)} texts, but {len(call.groups)} {what}; give one for each text, or "
      "mark their places in the texts"
    )
