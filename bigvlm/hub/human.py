"""The human side of a checkpoint: images and strings in, strings and numbers out.

Rows are padded to lengths that are multiples of `BUCKET`, and the last batch is filled up, so that
batches of other prompts run the same compiled programs.
"""

import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bigvlm.hub import answering, bigvision_inputs, decoding
from bigvlm.processing import video
from bigvlm.processing.hub import bigvision, decoded, processors
from bigvlm.processing.hub import images as image_lib
from bigvlm.sampling import GREEDY, Sampling
from bigvlm.types import Item

BUCKET = 32  # Prompts.
_ANSWER = 8  # Answers that are scored.
_DECODERS = ("lm", "vlm", "encdec", "memory")
KINDS = (*_DECODERS, "dual", "encoder", "matching")  # With files of transformers.
# What big_vision's kinds are for people.
_ROLES = {"bv_paligemma": "vlm", "bv_two_towers": "dual", "bv_vit": "encoder"}
_BATCHES = decoding.BATCHES | bigvision_inputs.BATCHES


class Human:
  """Calls of `api.Model`, for a model with `system`, `directory` and the calls of transformers.

  All images may be PIL images, uint8 arrays [H, W, 3], bytes of a file or paths.
  """

  @property
  def processor(self) -> processors.Processor | None:
    """What turns images and strings into inputs; read from the directory when first asked for.

    None without tokenizer and preprocessor files; an `.npz` needs a sentencepiece model beside it.
    Raises ValueError where they are damaged.
    """
    if self._processor is None and self.npz is not None:
      self._processor = bigvision_inputs.processor(self)
    elif self._processor is None and self._files is not None:
      self._processor = processors.make(self._files)
    return self._processor

  @processor.setter
  def processor(self, value: Any) -> None:
    self._processor = value

  @property
  def _native(self) -> bool:
    """Whether somebody gave it a processor of a run, whose rows `api.Model` knows to batch."""
    return not isinstance(self.processor, (processors.Processor, type(None)))

  @property
  def _encodes(self) -> bool:
    """Whether prompts are for an encoder, and answers for a decoder of its own."""
    return hasattr(getattr(self.module, "decoder", None), "encode")

  @property
  def _files(self) -> pathlib.Path | None:
    """The directory, where its files are transformers'."""
    return self.directory if self.system.inputs in KINDS else None

  def generate(
    self,
    images: Sequence[Any] | None,
    prompts: Sequence[str],
    *,
    max_new_tokens: int = 64,
    temperature: float = 0.0,
    beams: int = 0,
    length_penalty: float = 0.0,
    seed: int = 0,
    batch_size: int = 32,
  ) -> list[str]:
    """Answers every prompt.

    Args:
      images: one image or a list of images for each prompt; None for a text model. A model that
        takes videos also has `processing.video.Clip`s, video files and folders among them.
      prompts: as many strings. Where a prompt does not mark the places of its images they stand
        in front of it.
      max_new_tokens: most tokens of an answer.
      temperature: 0 = greedy.
      beams, length_penalty: as for `answers`.
      seed: of the sampling.
      batch_size: rows at a time.

    Raises:
      ValueError: a model that writes nothing, or without processor files; unequal numbers of
        images and prompts; images and marks that do not match (names the prompt).
    """
    if self._native:
      settings = dict(max_new_tokens=max_new_tokens, temperature=temperature, seed=seed)
      settings |= dict(beams=beams, length_penalty=length_penalty, batch_size=batch_size)
      return super().generate(images, prompts, **settings)
    found = self.answers(
      images,
      prompts,
      max_new_tokens=max_new_tokens,
      sampling=Sampling(temperature=temperature),
      beams=beams,
      length_penalty=length_penalty,
      seed=seed,
      batch_size=batch_size,
    )
    return [one[0].text for one in found]

  def answers(
    self,
    images: Sequence[Any] | None,
    prompts: Sequence[str],
    *,
    max_new_tokens: int = 64,
    sampling: Sampling = GREEDY,
    samples: int = 1,
    beams: int = 0,
    length_penalty: float = 0.0,
    stop: Sequence[str] = (),
    on_text: answering.OnText | None = None,
    seed: int = 0,
    batch_size: int = 32,
  ) -> list[list[answering.Answer]]:
    """Answers every prompt, with tokens and log-probabilities.

    Args:
      images, prompts, max_new_tokens, seed, batch_size: as for `generate`.
      sampling: temperature, top-k, top-p, min-p, repetition penalty (`bigvlm.sampling`).
      samples: answers to each prompt, from one prefill.
      beams: > 0 searches with so many hypotheses instead (`bigvlm.beam`); with a `length_penalty`
        only when asked.
      stop: strings before which an answer is cut; nothing more is generated once every answer of a
        batch has ended or said one.
      on_text: called with (number of the prompt, new text) while answers are written.

    Returns:
      For each prompt its answers.

    Raises:
      ValueError: as `generate`; options that do not go together.
    """
    self._kind("generate", *_DECODERS)
    if max_new_tokens < 1:
      raise ValueError(f"max_new_tokens must be at least 1, not {max_new_tokens}")
    found: list[list[answering.Answer]] = []
    for n, (rows, count) in enumerate(_batches(_paired(images, prompts), batch_size)):
      given = self.prompt_inputs(rows)
      given.pop("labels", None)
      found += answering.answers(
        self,
        _BATCHES[self.system.inputs](self, given, True),
        jax.random.fold_in(jax.random.key(seed), n),
        count=count,
        max_new_tokens=max_new_tokens,
        sampling=sampling,
        samples=samples,
        beams=beams,
        length_penalty=length_penalty,
        stop=tuple(stop),
        on_text=on_text,
        first=len(found),
      )
    return found

  def score(
    self,
    images: Sequence[Any] | None,
    prompts: Sequence[str],
    answers: Sequence[str],
    *,
    batch_size: int = 32,
  ) -> np.ndarray:
    """float32 [N]: log p(answer and end | images, prompt), summed over tokens.

    Args:
      images, prompts: as for `generate`. answers: one for each prompt.
      batch_size: rows at a time.

    Raises:
      ValueError: as for `generate`.
    """
    if self._native:
      return super().score(images, prompts, answers, batch_size=batch_size)
    self._kind("score", *_DECODERS)
    if len(answers) != len(prompts):
      raise ValueError(f"there are {len(prompts)} prompts, but {len(answers)} answers")
    rows = [(*row, answer) for row, answer in zip(_paired(images, prompts), answers, strict=True)]
    found = []
    for part, count in _batches(rows, batch_size):
      given = self.prompt_inputs(part)
      labels = given["labels"] if "labels" in given else bigvision_inputs.labels(given)
      if self._encodes:
        labels = np.pad(labels, ((0, 0), (0, -labels.shape[1] % _ANSWER)), constant_values=-100)
        logits = self.forward_hf(given | {"labels": labels})["logits"]
      else:
        batch = _BATCHES[self.system.inputs](self, given, False)
        before = batch.text.tokens.shape[1] - labels.shape[1]  # Images that are not in the prompt.
        read, labels = reads(labels)
        read = read + before
        logits = self.apply(batch.replace(text=batch.text.replace(read=read))).logits
      found.append(np.asarray(_log_prob(logits, labels))[:count])
    return np.concatenate(found) if found else np.zeros(0, np.float32)

  def embed_image(self, images: Sequence[Any], *, batch_size: int = 64) -> np.ndarray:
    """float32 [N, D], L2-normalised: what a dual encoder compares, or an encoder's pooled output.

    Raises:
      ValueError: a model that pools no images, or without processor files.
    """
    if self._native:
      return super().embed_image(images, batch_size=batch_size)
    kind = self._kind("embed_image", "dual", "encoder")
    key = "image_embeds" if kind == "dual" else "pooler_output"
    key = "pre_logits" if self.npz is not None and kind == "encoder" else key
    settings = self._sizes()
    found = []
    for rows, count in _batches(decoded.flat(images), batch_size):
      out = self.forward_hf(self.processor(images=rows, **settings))
      if key not in out or out[key].ndim != 2:
        raise ValueError(f"embed_image needs a model that pools its patches; this gives {[*out]}")
      x = out[key][:count]
      found.append(x / np.linalg.norm(x, axis=-1, keepdims=True))
    return np.concatenate(found) if found else np.zeros((0, 0), np.float32)

  def embed_text(self, texts: Sequence[str], *, batch_size: int = 64) -> np.ndarray:
    """float32 [N, D], L2-normalised; a longer text is cut to what the model reads.

    Raises:
      ValueError: a model without a text tower, or without processor files.
    """
    if self._native:
      return super().embed_text(texts, batch_size=batch_size)
    self._kind("embed_text", "dual")
    length = self.module.text.length
    limit = self.processor.tokenizer and self.processor.tokenizer.max_length
    settings = dict(padding="max_length", truncation=True, max_length=min(length, limit or length))
    found = []
    for rows, count in _batches(_strings("texts", texts), batch_size):
      out = self.forward_hf(self.processor(text=rows, **settings))
      found.append(out["text_embeds"][:count])
    return np.concatenate(found) if found else np.zeros((0, 0), np.float32)

  def _kind(self, call: str, *kinds: str) -> str:
    """How the model takes inputs, when it has this call and a processor."""
    kind = _ROLES.get(self.system.inputs, self.system.inputs)
    if kind in KINDS and kind not in kinds:
      raise ValueError(f"{call} is for {' or '.join(kinds)} models; this is a {kind!r} model")
    if self.processor is None:
      where = self.directory or "this model"
      if self.npz is not None:
        slot = self.module.text if kind == "dual" else self.module.decoder
        lacks = bigvision.wanted(slot.vocab)
        raise ValueError(f"{call} needs a processor, but {where} has no {lacks}")
      raise ValueError(
        f"{call} needs a processor, but {where} has no tokenizer and preprocessor files; put them "
        "there, or call forward_hf and generate_hf with arrays"
      )
    return kind

  def prompt_inputs(self, rows: Sequence[tuple], **more: Any) -> dict[str, np.ndarray]:
    """Inputs of (images, prompt[, answer]) rows, padded on the left of a decoder.

    `more` are settings of the processor instead of those that this call has.
    """
    groups, prompts, *answers = zip(*rows, strict=True)
    settings: dict[str, Any] = dict(padding=True, pad_to_multiple_of=BUCKET)
    if not self._encodes:
      settings["padding_side"] = self.processor.SIDE
    tokenizer = self.processor.tokenizer
    start = tokenizer.special.get("bos_token") if tokenizer else None
    there = start and all(prompt.startswith(start) for prompt in prompts)  # By a chat template.
    if there or self.processor.STARTS:
      settings["add_special_tokens"] = False
    if answers:
      settings["suffix"] = list(answers[0])
    films = video.is_video if self.processor.videos is not None else lambda one: False
    if self.processor.images is None and self.processor.videos is not None:
      groups = [[one if films(one) else self._still(one) for one in group] for group in groups]
    clips = [[one for one in group if films(one)] for group in groups]
    groups = [[one for one in group if not films(one)] for group in groups]
    if any(groups) or any(clips):
      prompts = self.processor.placed(prompts, groups, [len(group) for group in clips])
    if any(groups):
      settings |= self._sizes() | {"images": groups}
    if any(clips):
      settings["videos"] = clips
    settings = {k: v for k, v in (settings | more).items() if v is not None}
    return self.processor(text=list(prompts), **settings)

  def _still(self, picture: Any) -> video.Clip:
    """A picture as a video, for models that read videos alone."""
    return video.read([picture] * self.processor.FRAMES)

  def _sizes(self) -> dict[str, Any]:
    """Settings of the image processor that the model decides, not the files."""
    pixels: image_lib.ImageProcessor | None = self.processor.images
    encoder = getattr(self.module, "encoders", {}).get("image")
    if pixels is None or encoder is None or self.system.image_size is None:
      return {}
    if isinstance(pixels, bigvision.NaFlex):
      return {}
    if isinstance(pixels, image_lib.Patches):
      return {"patch_size": encoder.patch, "max_num_patches": pixels.max_patches}
    settings: dict[str, Any] = {}
    if self.system.image_size != self.loaded_size:  # `load(res=)`
      height, width = self.system.image_size
      settings["size"] = settings["crop_size"] = {"height": height, "width": width}
      settings = {key: value for key, value in settings.items() if key in pixels.KEYS}
    if pixels.tokens is not None and self.system.inputs == "vlm":
      grid = encoder.grid(*self.system.image_size)
      settings["image_seq_length"] = len(self.module.connector.rows([Item(0, (1, *grid))])[0])
    return settings


def _paired(images: Sequence[Any] | None, prompts: Sequence[str]) -> list[tuple[list[Any], str]]:
  """The images of every prompt."""
  prompts = _strings("prompts", prompts)
  if images is None:
    return [([], prompt) for prompt in prompts]
  if len(images) != len(prompts):
    raise ValueError(f"{len(images)} images but {len(prompts)} prompts")
  groups = [[] if one is None else media_of(one) for one in images]
  return list(zip(groups, prompts, strict=True))


def media_of(given: Any) -> list[Any]:
  """Images and videos of one prompt, in order."""
  if isinstance(given, (list, tuple)):
    return [one for part in given for one in media_of(part)]
  return [given] if video.is_video(given) else decoded.flat(given)


def _strings(name: str, given: Sequence[str]) -> list[str]:
  if isinstance(given, str):
    raise ValueError(f"{name} is one string; give a list of them")
  for n, one in enumerate(given):
    if not isinstance(one, str):
      raise ValueError(f"{name}[{n}] is a {type(one).__name__}, not a string")
  return list(given)


def _batches(rows: Sequence[Any], size: int) -> Iterator[tuple[list[Any], int]]:
  """Parts of one size, the last filled up with its last row, and how many rows are real."""
  size = max(1, min(size, len(rows)))
  for start in range(0, len(rows), size):
    part = list(rows[start : start + size])
    yield part + [part[-1]] * (size - len(part)), len(part)


def reads(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """The positions that predict labels [B, T], and what they predict, both [B, K]; -100 = none."""
  wanted = labels != -100
  most = -(-int(wanted.sum(axis=1).max()) // _ANSWER) * _ANSWER
  read = np.zeros((len(labels), most), np.int32)
  target = np.full((len(labels), most), -100, np.int32)
  for row, at in enumerate(map(np.flatnonzero, wanted)):
    read[row, : len(at)] = at - 1
    target[row, : len(at)] = labels[row, at]
  return read, target


@jax.jit
def _log_prob(logits: jax.Array, labels: jax.Array) -> jax.Array:
  """float32 [B]: log p of labels [B, K] under logits [B, K, V], without those that are -100."""
  logp = jax.nn.log_softmax(logits.astype(jnp.float32))
  chosen = jnp.take_along_axis(logp, jnp.maximum(labels, 0)[:, :, None], axis=-1)[:, :, 0]
  return jnp.sum(jnp.where(labels == -100, 0.0, chosen), axis=1)
