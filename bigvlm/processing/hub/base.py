"""What the processors of checkpoints share: a call's inputs, text with answers, decoding, chat."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from bigvlm.processing.hub import decoded
from bigvlm.processing.hub.images import Groups, ImageProcessor
from bigvlm.processing.hub.tokenizers import Text
from bigvlm.processing.hub.videos import VideoProcessor
from bigvlm.processing.video import Clip
from bigvlm.utils import names


@dataclasses.dataclass(frozen=True)
class Parts:
  """What a directory's files describe.

  Attributes:
    images, videos: processors, or None. tokenizer: or None. qformer: a second tokenizer, or None.
    settings: of `processor_config.json`. config: of `config.json`.
  """

  images: ImageProcessor | None = None
  tokenizer: Text | None = None
  videos: VideoProcessor | None = None
  qformer: Text | None = None
  settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  config: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass
class Call:
  """The inputs of one call.

  Attributes:
    texts, suffixes: strings, or None.
    groups: images in lists, None without any. nested: whether they came in lists, one a text.
    clips: videos, None without any.
    text: settings of the tokenizer.
    images, videos: the processors with this call's settings.
  """

  texts: list[Any] | None
  suffixes: Sequence[str] | None
  groups: Groups | None
  nested: bool
  clips: list[Clip] | None
  text: dict[str, Any]
  images: ImageProcessor | None
  videos: VideoProcessor | None


class Processor:
  """Images and text side by side, for dual encoders, encoders and text models.

  Attributes:
    images: image processor, or None. videos: video processor, or None.
    tokenizer: tokenizer, or None.
    NEEDS: parts without which a directory has a plain `Processor`.
    OVER_WHITE: whether the transparency of PIL images is laid over white, or left out.
    STARTS: whether prompts get their start token from the processor, not from the tokenizer.
    SIDE: the side on which prompts are padded for generation.
    FRAMES: of the video that a picture becomes where a model reads videos alone.
    ahead: places in front of the text that padding to a length does not count.
    text_defaults: settings of the tokenizer that this system has where the caller gives none.
    image_defaults: the same of the image processor.
    targets: whether a suffix is what a decoder of its own writes (encoder-decoders).
  """

  NEEDS: tuple[str, ...] = ("images", "tokenizer")
  OVER_WHITE = True
  STARTS = False
  SIDE = "left"
  FRAMES = 1
  ahead = 0
  text_defaults: dict[str, Any] = {}
  image_defaults: dict[str, Any] = {}

  def __init__(self, parts: Parts, targets: bool = False):
    self.images = parts.images
    self.videos = parts.videos
    self.tokenizer = parts.tokenizer
    self.targets = targets

  def __call__(
    self,
    images: Any = None,
    text: str | Sequence[Any] | None = None,
    suffix: str | Sequence[str] | None = None,
    videos: Any = None,
    *,
    padding: bool | str | None = None,
    truncation: bool | None = None,
    max_length: int | None = None,
    pad_to_multiple_of: int | None = None,
    padding_side: str | None = None,
    add_special_tokens: bool | None = None,
    return_tensors: str | None = "np",
    video_metadata: Any = None,
    **settings: Any,
  ) -> dict[str, np.ndarray]:
    """Prepares a batch.

    Args:
      images: an image, a list of them, or a list of lists, one for each text; an image is a PIL
        image, a uint8 array, bytes of a file or a path.
      text: a prompt or several.
      suffix: the answer to each prompt, for training and scoring: appended with the end token (an
        encoder-decoder has it in `labels` alone).
      videos: a video, a list of them, or a list of lists; see `processing.video.read`.
      padding: True or "longest" (the default, but for SigLIP), "max_length", or False.
      truncation, max_length: whether and to what length text is cut.
      pad_to_multiple_of, padding_side, add_special_tokens: see `tokenizers.Text`.
      return_tensors: "np" or None; arrays of NumPy either way.
      video_metadata: of videos whose frames were taken before; see `VideoProcessor.clips`.
      **settings: as in `preprocessor_config.json` and `video_preprocessor_config.json`, for this
        call; what both know is for both.

    Returns:
      `pixel_values` and what else the image processor gives; int64 [B, T] `input_ids` and
      `attention_mask`; with a suffix `labels` [B, T], -100 where nothing is to be predicted.

    Raises:
      ValueError: nothing to do; text, images or videos for a model without them; an image that is
        none; more images than places for them, or fewer (names the example).
    """
    if images is None and text is None and videos is None:
      raise ValueError("give images, text or both")
    if images is not None and self.images is None:
      raise ValueError("this model takes no images (its directory has no preprocessor_config.json)")
    if videos is not None and self.videos is None:
      raise ValueError("this model takes no videos")
    if text is not None and self.tokenizer is None:
      raise ValueError("this model takes no text (its directory has no tokenizer files)")
    if return_tensors not in ("np", None):
      raise ValueError(f"return_tensors={return_tensors!r}: the arrays are NumPy's ('np')")
    texts = [text] if isinstance(text, str) else None if text is None else list(text)
    suffixes = [suffix] if isinstance(suffix, str) else suffix
    if suffixes is not None and len(suffixes) != len(texts or ()):
      raise ValueError(f"there are {len(texts or ())} texts, but {len(suffixes)} suffixes")
    given = dict(
      padding=padding,
      truncation=truncation,
      max_length=max_length,
      pad_to_multiple_of=pad_to_multiple_of,
      padding_side=padding_side,
      add_special_tokens=add_special_tokens,
    )
    given = {k: v for k, v in given.items() if v is not None}
    pixels, frames = self._changed(settings)
    clips = None
    if videos is not None:
      wanted = any(settings.get(key) is not None for key in ("fps", "num_frames"))
      asked = wanted and settings.get("do_sample_frames") is not False
      clips = frames.clips(videos, video_metadata, asked)
    found = self._batch(
      Call(
        texts,
        suffixes,
        None if images is None else decoded.groups(images, self.OVER_WHITE),
        decoded.nested(images),
        clips,
        {"padding": "longest", "truncation": False, "add_special_tokens": True}
        | self.text_defaults
        | given,
        pixels,
        frames,
      )
    )
    return {k: np.asarray(v) for k, v in found.items()}

  def _changed(self, settings: Mapping[str, Any]) -> tuple[Any, Any]:
    """Image and video processor with a call's settings."""
    pixels, frames = self.images, self.videos
    known = [set(p.KEYS) if p is not None else set() for p in (pixels, frames)]
    for key in settings:
      if not any(key in keys for keys in known):
        raise ValueError(names.unknown("setting", key, known[0] | known[1]))
    if pixels is not None:
      mine = self.image_defaults | dict(settings)
      pixels = pixels.replace({k: v for k, v in mine.items() if k in known[0]})
    if frames is not None:
      frames = frames.replace({k: v for k, v in settings.items() if k in known[1]})
    return pixels, frames

  def _batch(self, call: Call) -> dict[str, Any]:
    found = {}
    if call.texts is not None:
      found |= self._text(call)
    if call.groups is not None:
      found |= call.images.batch(call.groups)
    if call.clips is not None:
      found |= call.videos.clip_batch(call.clips)
    return found

  def _text(self, call: Call, texts: list[str] | None = None) -> dict[str, np.ndarray]:
    """Ids of a call's texts, or of others that they have become, with its suffixes."""
    texts = call.texts if texts is None else texts
    suffixes, settings = call.suffixes, call.text
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
      rows.append((ids, self._answer(suffix)))
    return self._answered(rows, settings)

  def _answer(self, suffix: str) -> list[int]:
    """Ids of an answer and its end."""
    return [*self.tokenizer.encode(suffix, special=False)[0], self.tokenizer.eos]

  def _answered(
    self, rows: Sequence[tuple[Sequence[int], Sequence[int]]], settings: Mapping[str, Any]
  ) -> dict[str, np.ndarray]:
    """A batch of (prompt, answer) ids, with labels."""
    found = self.tokenizer.padded(
      [((*ids, *more), [0] * len(ids) + [1] * len(more)) for ids, more in rows],
      padding=settings["padding"],
      multiple=settings.get("pad_to_multiple_of"),
      side=settings.get("padding_side"),
    )
    types = found.pop("token_type_ids")
    return found | {"labels": np.where(types == 1, found["input_ids"], -100)}

  def placed(
    self, prompts: Sequence[str], groups: Sequence[Sequence[Any]], videos: Sequence[int]
  ) -> list[Any]:
    """The prompts, with places for their media in front of those that mark none.

    Args:
      prompts: of a batch. groups: images of each. videos: number of videos of each.
    """
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

  NEEDS = ()
  text_defaults = {"padding": "max_length", "truncation": True}


class Siglip2(Processor):
  """Patches of images in their own aspect ratio, and text as SigLIP's."""

  NEEDS = ()
  text_defaults = {"padding": "max_length", "truncation": True, "max_length": 64}
  image_defaults = {"max_num_patches": 256, "patch_size": 16}


def one_each(marks: Sequence[int], groups: Groups | None, nested: bool, mark: str) -> None:
  """Checks that every mark in a text has an image.

  Args:
    marks: how many every text has. groups: images; nested: in lists, one a text.
    mark: for the message.

  Raises:
    ValueError: another number of images; names the first example where it shows.
  """
  if nested:
    have = [len(g) for g in groups]
    if len(have) != len(marks):
      raise ValueError(f"there are {len(marks)} texts, but {len(have)} lists of images")
    for n, (want, there) in enumerate(zip(marks, have, strict=True)):
      if want != there:
        raise ValueError(f"text[{n}] has {want} {mark} marks, but images[{n}] has {there} images")
    return
  total = sum(map(len, groups or ()))
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
