"""A checkpoint's processor: images and strings to the arrays that its model takes.

`make` reads one from the files beside the weights. Outputs are those of transformers' processor
of the same name with `return_tensors="np"`, under its names.
"""

import json
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from tokenizers import AddedToken

from bigvlm.processing import boxes
from bigvlm.processing.hub import build, images
from bigvlm.processing.hub.tokenizers import FastText, Text


class Processor:
  """Images and text side by side, for dual encoders, encoders and text models.

  Attributes:
    images: image processor, or None. tokenizer: tokenizer, or None.
    text_defaults: settings of the tokenizer that this system has where the caller gives none.
    targets: whether a suffix is what a decoder of its own writes (encoder-decoders).
  """

  text_defaults: dict[str, Any] = {}
  image_defaults: dict[str, Any] = {}

  def __init__(
    self, image_processor: images.ImageProcessor | None, tokenizer: Text | None, targets=False
  ):
    self.images = image_processor
    self.tokenizer = tokenizer
    self.targets = targets

  def __call__(
    self,
    images: Any = None,
    text: str | Sequence[str] | None = None,
    suffix: str | Sequence[str] | None = None,
    *,
    padding: bool | str | None = None,
    truncation: bool | None = None,
    max_length: int | None = None,
    pad_to_multiple_of: int | None = None,
    padding_side: str | None = None,
    add_special_tokens: bool = True,
    return_tensors: str | None = "np",
    **image_settings: Any,
  ) -> dict[str, np.ndarray]:
    """Prepares a batch.

    Args:
      images: an image, a list of them, or a list of lists, one for each text; an image is a PIL
        image, a uint8 array, bytes of a file or a path.
      text: a prompt or several.
      suffix: the answer to each prompt, for training and scoring: appended with the end token (an
        encoder-decoder has it in `labels` alone).
      padding: True or "longest" (the default, but for SigLIP), "max_length", or False.
      truncation, max_length: whether and to what length text is cut.
      pad_to_multiple_of, padding_side, add_special_tokens: see `tokenizers.Text`.
      return_tensors: "np" or None; arrays of NumPy either way.
      **image_settings: as in `preprocessor_config.json`, for this call.

    Returns:
      `pixel_values` and what else the image processor gives; int64 [B, T] `input_ids` and
      `attention_mask`; with a suffix `labels` [B, T], -100 where nothing is to be predicted.

    Raises:
      ValueError: nothing to do; text or images for a model without them; an image that is none;
        more images than places for them, or fewer (names the example).
    """
    if images is None and text is None:
      raise ValueError("give images, text or both")
    if images is not None and self.images is None:
      raise ValueError("this model takes no images (its directory has no preprocessor_config.json)")
    if text is not None and self.tokenizer is None:
      raise ValueError("this model takes no text (its directory has no tokenizer files)")
    if return_tensors not in ("np", None):
      raise ValueError(f"return_tensors={return_tensors!r}: the arrays are NumPy's ('np')")
    texts = [text] if isinstance(text, str) else None if text is None else list(text)
    suffixes = [suffix] if isinstance(suffix, str) else suffix
    if suffixes is not None and len(suffixes) != len(texts or ()):
      raise ValueError(f"there are {len(texts or ())} texts, but {len(suffixes)} suffixes")
    settings = dict(
      padding=padding,
      truncation=truncation,
      max_length=max_length,
      pad_to_multiple_of=pad_to_multiple_of,
      padding_side=padding_side,
      add_special_tokens=add_special_tokens,
    )
    given = {k: v for k, v in settings.items() if v is not None}
    text_settings = {"padding": "longest", "truncation": False} | self.text_defaults | given
    return self._batch(images, texts, suffixes, text_settings, self.image_defaults | image_settings)

  def _batch(
    self,
    images: Any,
    texts: list[str] | None,
    suffixes: Sequence[str] | None,
    text_settings: dict[str, Any],
    image_settings: dict[str, Any],
  ) -> dict[str, np.ndarray]:
    found = {}
    if texts is not None:
      found |= self._text(texts, suffixes, text_settings)
    if images is not None:
      found |= self.images(images, **image_settings)
    return found

  def _text(self, texts, suffixes, settings) -> dict[str, np.ndarray]:
    if suffixes is None:
      return self.tokenizer(texts, **settings)
    if self.targets:
      found = self.tokenizer(texts, **settings)
      target = self.tokenizer(suffixes, padding=settings["padding"], padding_side="right")
      mask = target.get("attention_mask", np.ones_like(target["input_ids"]))
      return found | {"labels": np.where(mask > 0, target["input_ids"], -100)}
    special = settings["add_special_tokens"]
    rows = []
    for text, suffix in zip(texts, suffixes, strict=True):
      ids, _ = self.tokenizer.encode(text, special=special)
      if ids[-1:] == [self.tokenizer.eos] and special:
        ids = ids[:-1]  # The end comes after the suffix.
      more = [*self.tokenizer.encode(suffix, special=False)[0], self.tokenizer.eos]
      rows.append(([*ids, *more], [0] * len(ids) + [1] * len(more)))
    found = self.tokenizer.padded(
      rows,
      padding=settings["padding"],
      multiple=settings.get("pad_to_multiple_of"),
      side=settings.get("padding_side"),
    )
    types = found.pop("token_type_ids")
    return found | {"labels": np.where(types == 1, found["input_ids"], -100)}

  def placed(self, prompts: Sequence[str], groups: Sequence[Sequence[Any]]) -> list[str]:
    """The prompts, with places for their images in front of those that mark none."""
    return list(prompts)

  def decode(self, ids: Iterable[Any], *, skip_special_tokens: bool = True) -> Any:
    """The text of ids [T], or a list of texts for [B, T]; special tokens are left out."""
    if self.tokenizer is None:
      raise ValueError("this model has no tokenizer files to decode with")
    rows = [np.asarray(row) for row in ids]
    if rows and rows[0].ndim:
      return [self.tokenizer.decode(row, skip_special=skip_special_tokens) for row in rows]
    return self.tokenizer.decode(rows, skip_special=skip_special_tokens)

  def chat(self, messages: Sequence[Mapping[str, Any]], **options: Any) -> str:
    """A conversation as a prompt, by the checkpoint's chat template; see `chat.render`."""
    if self.tokenizer is None:
      raise ValueError("this model has no tokenizer files")
    return self.tokenizer.chat(messages, **options)


class Siglip(Processor):
  """SigLIP was trained on text padded to its full length."""

  text_defaults = {"padding": "max_length", "truncation": True}


class Siglip2(Processor):
  """Patches of images in their own aspect ratio, and text as SigLIP's."""

  text_defaults = {"padding": "max_length", "truncation": True, "max_length": 64}
  image_defaults = {"max_num_patches": 256, "patch_size": 16}


class PaliGemma(Processor):
  """`<image>...<bos>prompt\\n`, the suffix and an end token behind it (arXiv 2407.07726).

  Images stand where the prompt says `<image>`; a prompt without any has its images in front.
  """

  MARK = "<image>"

  def __init__(self, image_processor, tokenizer):
    super().__init__(image_processor, tokenizer)
    if image_processor.tokens is None:
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

  def _batch(self, images, texts, suffixes, text_settings, image_settings):
    if images is None:
      raise ValueError("PaliGemma's processor needs images")
    if texts is None:
      texts = [""] * len(images if _nested(images) else _flat(images))
    if not any(self.MARK in text for text in texts):
      texts = [self.MARK * len(g) + text for g, text in _grouped(images, texts)]
    one_each([text.count(self.MARK) for text in texts], images, self.MARK)
    tokens = image_settings.get("image_seq_length") or self.images.tokens
    bos, eos = (self.tokenizer.special[f"{name}_token"] for name in ("bos", "eos"))
    prompts = []
    for text in texts:
      at = text.rfind(self.MARK)
      at += len(self.MARK) if at >= 0 else 1
      text = f"{text[:at]}{bos}{text[at:]}\n"
      prompts.append(text.replace(self.MARK, self.image_token * tokens))
    pairs = None if suffixes is None else [suffix + eos for suffix in suffixes]
    found = self.tokenizer(prompts, pairs, types=True, **text_settings)
    ids, types = found["input_ids"], found["token_type_ids"]
    check_places(ids, self.tokenizer.id(self.image_token), prompts, self.image_token)
    found["labels"] = np.where(types == 0, -100, ids)
    return found | self.images(images, **image_settings)


class Gemma3(Processor):
  """A place for an image becomes its tokens, with a mark on each side and empty lines around."""

  image_defaults = {
    "do_pan_and_scan": False,
    "pan_and_scan_min_crop_size": 256,
    "pan_and_scan_max_num_crops": 4,
    "pan_and_scan_min_ratio_to_activate": 1.2,
  }

  def __init__(self, image_processor, tokenizer, tokens: int = 256):
    super().__init__(image_processor, tokenizer)
    lacking = [n for n in ("boi", "eoi", "image") if f"{n}_token" not in tokenizer.extra]
    if lacking:
      raise ValueError(f"tokenizer_config.json lacks {lacking[0]}_token")
    self.mark, end, self.image_token = (
      tokenizer.extra[f"{name}_token"] for name in ("boi", "eoi", "image")
    )
    self.place = f"\n\n{self.mark}{self.image_token * tokens}{end}\n\n"

  def _batch(self, images, texts, suffixes, text_settings, image_settings):
    pixels = {}
    if images is not None:
      if texts is None:
        nested = _nested(images)
        texts = [" ".join([self.mark] * len(g)) for g in (images if nested else [_flat(images)])]
      one_each([text.count(self.mark) for text in texts], images, self.mark)
      pixels = self.images(images, **image_settings)
    elif any(self.mark in text for text in texts):
      one_each([text.count(self.mark) for text in texts], [], self.mark)
    crops = iter(pixels.pop("num_crops", ()))
    prompts = []
    for text in texts:
      head, *parts = text.split(self.mark)
      prompts.append(head + "".join(self._places(next(crops)) + part for part in parts))
    found = self._text(prompts, suffixes, text_settings)
    number = self.tokenizer.id(self.image_token)
    check_places(found["input_ids"], number, prompts, self.image_token)
    found["token_type_ids"] = (found["input_ids"] == number).astype(np.int64)
    return found | pixels

  def placed(self, prompts, groups):
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


def _flat(given: Any) -> list[Any]:
  return images.flat(given)


def _nested(given: Any) -> bool:
  """Whether images are lists of images, one for each text."""
  return isinstance(given, (list, tuple)) and any(isinstance(g, (list, tuple)) for g in given)


def _grouped(given: Any, texts: Sequence[str]) -> list[tuple[list[Any], str]]:
  """The images of every text: lists as they are, else one each."""
  groups = [_flat(g) for g in given] if _nested(given) else [[one] for one in _flat(given)]
  if len(groups) != len(texts):
    what = "lists of images" if _nested(given) else "images"
    raise ValueError(
      f"there are {len(texts)} texts, but {len(groups)} {what}; give one for each text, or mark "
      "their places in the texts"
    )
  return list(zip(groups, texts, strict=True))


def one_each(marks: Sequence[int], given: Any, mark: str) -> None:
  """Checks that every mark in a text has an image.

  Args:
    marks: how many every text has. given: images, flat or in lists. mark: for the message.

  Raises:
    ValueError: another number of images; names the first example where it shows.
  """
  if _nested(given):
    have = [len(_flat(g)) for g in given]
    if len(have) != len(marks):
      raise ValueError(f"there are {len(marks)} texts, but {len(have)} lists of images")
    for n, (want, there) in enumerate(zip(marks, have, strict=True)):
      if want != there:
        raise ValueError(f"text[{n}] has {want} {mark} marks, but images[{n}] has {there} images")
    return
  total = len(_flat(given))
  used = 0
  for n, want in enumerate(marks):
    if used + want > total:
      raise ValueError(
        f"text[{n}] has {want} {mark} marks, but only {total - used} of {total} images are left"
      )
    used += want
  if used < total:
    raise ValueError(
      f"there are {total} images, but the texts have {used} {mark} marks; images[{used}] and on "
      f"have no place after text[{len(marks) - 1}]"
    )


def check_places(ids: np.ndarray, number: int, prompts: Sequence[str], token: str) -> None:
  """Checks that no place of an image was cut off.

  Raises:
    ValueError: names the example.
  """
  for n, prompt in enumerate(prompts):
    want, have = prompt.count(token), int((ids[n] == number).sum())
    if want != have:
      raise ValueError(
        f"text[{n}] keeps {have} of {want} image tokens at this max_length; raise it or turn "
        "truncation off"
      )


# `processor_class`, or the `model_type` where the files do not name one.
CLASSES: dict[str, type[Processor]] = {
  "Gemma3Processor": Gemma3,
  "PaliGemmaProcessor": PaliGemma,
  "Siglip2Processor": Siglip2,
  "SiglipProcessor": Siglip,
  "gemma3": Gemma3,
  "paligemma": PaliGemma,
  "siglip": Siglip,
  "siglip2": Siglip2,
}
_ENCODER_DECODERS = ("t5", "mt5", "umt5")


def make(directory: str | pathlib.Path) -> Processor | None:
  """The processor of a checkpoint directory; None without tokenizer and preprocessor files.

  Raises:
    ValueError: files that are damaged, that name an unknown image processor, or that lack what
      this system needs.
  """
  directory = pathlib.Path(directory)
  settings = {
    file: json.loads((directory / file).read_text("utf-8"))
    for file in ("config.json", "processor_config.json", "preprocessor_config.json")
    if (directory / file).is_file()
  }
  kind = settings.get("config.json", {}).get("model_type", "")
  cfg = images.config(directory)
  pixels = None if cfg is None else images.make(cfg, kind, str(directory))
  tokenizer = build.make(directory)
  if pixels is None and tokenizer is None:
    return None
  named = (s.get("processor_class") for s in reversed(settings.values()))
  name = next((n for n in named if n in CLASSES), kind)
  made = CLASSES.get(name, Processor)
  if made in (Gemma3, PaliGemma) and (pixels is None or tokenizer is None):
    made = Processor
  if made is Gemma3:
    more = settings.get("processor_config.json", {})
    return Gemma3(pixels, tokenizer, more.get("image_seq_length") or 256)
  if made is Processor:
    return Processor(pixels, tokenizer, targets=kind in _ENCODER_DECODERS)
  return made(pixels, tokenizer)
