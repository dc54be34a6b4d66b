"""Rows for training a checkpoint of others: its own processor, its own inputs, fixed shapes.

    processor=dict(kind="checkpoint", source="llava-hf/llava-1.5-7b-hf", text_len=1024, media_len=4)

What `forward_hf` and `generate` do with pictures and text is done here for one example, and padded
to the shapes that one compiled step takes; so every system that loads also trains.
"""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from bigvlm.hub import decoding, human, inputs, load, matching_training
from bigvlm.processing import processor, video
from bigvlm.processing.image import BadExample
from bigvlm.types import Batch
from bigvlm.utils import names

_FIELDS = ("kind", "source", "text_len", "read_len", "media_len", "image")
# What shapes are told by.
_PICTURE = np.zeros((48, 64, 3), np.uint8)
_FRAMES = 8  # Videos.


def system(source: str):
  """The system of a checkpoint, without its weights."""
  return load.outline(source)[0]


class CheckpointProcessor(processor.Processor):
  """Pictures, prefix and suffix as the checkpoint's own processor prepares them.

  Args:
    source: hub id or directory with weights, tokenizer and preprocessor files.
    text_len: positions of the text, placeholders of pictures included (of an encoder-decoder: of
      what is encoded).
    read_len: positions whose logits are wanted; 0 = text_len.
    media_len: most slots (pictures, tiles, frames) or patches of an example.

  Rows: those of `types.to_batch`, with pixels float32, and `bad` int32 [].
  """

  def __init__(self, source: str, *, text_len: int = 256, read_len: int = 0, media_len: int = 1):
    self.model = load.bare(source)
    if self.model.processor is None or self.model.processor.tokenizer is None:
      raise ValueError(f"{source} has no tokenizer files, which processor.kind='checkpoint' needs")
    self.tokenizer = self.model.processor.tokenizer
    self.text_len, self.read_len = text_len, read_len or text_len
    self.media_len = media_len

  def row(self, example, rng):
    return self._row(example, "suffix"), False

  def prompt(self, example):
    """As a call, but without suffix: `read` = [last position], K = 1."""
    return self._row(example, None)

  def blank(self):
    arrays = self._arrays(self._pictures, "", "")
    return {**arrays, "weights": arrays["weights"] * 0, "bad": np.ones((), np.int32)}

  def decode(self, ids):
    kept = []
    for i in ids:
      if int(i) in decoding.ends(self.model)[0]:
        break
      kept.append(int(i))
    return self.tokenizer.decode(kept)

  def _row(self, example: Mapping[str, Any], answer: str | None) -> processor.Arrays:
    record = str(example.get("id", ""))
    for field in ("prefix", answer):
      if field is not None and not isinstance(example.get(field), str):
        raise BadExample(f"has no text in its field {field!r}", record)
    try:
      pictures = human.media_of(example.get("image", ()))
      suffix = None if answer is None else example[answer]
      arrays = self._arrays(pictures, example["prefix"], suffix)
    except (ValueError, OSError) as e:  # Of a picture too, which knows no record.
      raise BadExample(str(e), record) from None
    return {**arrays, "bad": np.zeros((), np.int32)}

  def _arrays(self, pictures: list, prefix: str, suffix: str | None) -> processor.Arrays:
    row = (pictures, prefix) if suffix is None else (pictures, prefix, suffix)
    ahead = self.model.processor.ahead if pictures else 0
    given = self.model.prompt_inputs([row], pad_to_multiple_of=self.text_len - ahead)
    length = given["input_ids"].shape[1]
    if length > self.text_len:
      raise ValueError(f"the text has {length} tokens, processor.text_len is {self.text_len}")
    labels = given.get("labels")
    encodes = self.model.system.inputs == "encdec" or hasattr(self.model.module.decoder, "encode")
    if encodes and labels is not None:
      given["labels"] = labels = _fit("the answer", labels, self.read_len, 1, -100, "read_len")
    batch = decoding.BATCHES[self.model.system.inputs](self.model, given, suffix is None)
    out = self._flat(batch)
    if suffix is None:
      return out
    if encodes:
      read, wanted = np.arange(self.read_len, dtype=np.int32)[None], labels.astype(np.int32)
      out["target_read"] = read[0]
    else:
      read, wanted = human.reads(labels)
      read = _fit("the answer", read, self.read_len, 1, 0, "read_len")
      wanted = _fit("the answer", wanted, self.read_len, 1, -100, "read_len")
      out["read"] = read[0]
    out["labels"] = np.maximum(wanted[0], 0)
    out["weights"] = (wanted[0] != -100).astype(np.float32)
    return out

  def _flat(self, batch: Batch) -> processor.Arrays:
    """The arrays of one row of a batch, under the names of `types.to_batch`."""
    out = {}
    for name, media in self._whole(batch).items():
      values = media.pixels if media.patches is None else media.patches
      parts = {name: values, f"{name}_item": media.item, f"{name}_pos": media.pos}
      for key, x in parts.items():
        if x is not None:
          out[key] = _fit(f"the {name}", x, self.media_len, 1, 0, "media_len")[0]
    for key, x in self._extra(batch).items():
      out[key] = x[0]
    for prefix, text in (("", batch.text), ("target_", batch.target)):
      out |= {} if text is None else inputs.arrays(text, prefix)
    known = self._known.text
    if known.see is not None and "see" not in out:
      out["see"] = np.tile(np.asarray([1, 0], np.int32), (self.text_len, 1))  # Nothing.
    if known.positions.ndim > 2 and out["positions"].ndim == 1:
      out["positions"] = np.repeat(out["positions"][:, None], known.positions.shape[-1], axis=1)
    return out

  def _whole(self, batch: Batch) -> dict[str, Any]:
    """The media of a batch and, of encoders without any, empty ones: a step has one structure."""
    out = dict(batch.media)
    for name in getattr(self.model.module, "encoders", {}):
      if name not in out or not out[name].item.shape[1]:
        out[name] = jax.tree.map(lambda x: np.zeros_like(x[:, :1]), self._known.media[name])
    return out

  def _extra(self, batch: Batch) -> dict[str, np.ndarray]:
    """What the connector wants beside the features, for `media_len` slots."""
    out = {}
    for key, neutral in self._neutral.items():
      x = batch.extra.get(key, neutral[:, :0])[:, : neutral.shape[1]]  # The rest is padding.
      out[key] = np.concatenate([x, neutral[:, x.shape[1] :]], axis=1)
    return out

  @functools.cached_property
  def _neutral(self) -> dict[str, np.ndarray]:
    """`_extra` of rows without pictures."""
    found = {}
    for key, x in self._known.extra.items():
      found[key] = np.zeros((1, self.media_len, *x.shape[2:]), x.dtype)
    if hasattr(self.model.module.connector, "neutral"):
      grid = self.model.module.encoders["image"].grid(*self.model.system.image_size)
      found |= self.model.module.connector.neutral(1, self.media_len, grid[0] * grid[1])
    return found

  @property
  def _pictures(self) -> list[np.ndarray]:
    """A picture, for models that read any."""
    parts = self.model.processor
    return [] if parts.images is None and parts.videos is None else [_PICTURE]

  @functools.cached_property
  def _known(self) -> Batch:
    """A row with every kind of media that there is."""
    width = self.text_len - self.model.processor.ahead
    make = decoding.BATCHES[self.model.system.inputs]
    given = self.model.prompt_inputs([(self._pictures, "")], pad_to_multiple_of=width)
    found = make(self.model, given, True)
    lacks = {*getattr(self.model.module, "encoders", {})} - found.media.keys()
    if lacks:
      clip = video.read([_PICTURE] * _FRAMES)
      given = self.model.prompt_inputs([([clip], "")])
      more = make(self.model, given, True).media
      found = found.replace(media={**found.media, **{name: more[name] for name in lacks}})
    return found


def _fit(what: str, x: np.ndarray, length: int, axis: int, fill: int, field: str) -> np.ndarray:
  """x with an axis padded to a length.

  Raises:
    ValueError: it is longer; names the field of the processor.
  """
  have = x.shape[axis]
  if have > length:
    if axis != 1 or np.asarray(x[:, length:] != fill).any():
      raise ValueError(f"{what} takes {have} places, but processor.{field} is {length}")
    return x[:, :length]
  pads = [(0, 0)] * x.ndim
  pads[axis] = (0, length - have)
  return np.pad(x, pads, constant_values=fill)


def make(cfg: Mapping[str, Any]) -> processor.Processor:
  """The processor of `config.processor` with `kind="checkpoint"`.

  Raises:
    ValueError: an unknown field, no source, or one whose kind of model is not trained this way.
  """
  for key in cfg:
    if key not in _FIELDS:
      raise ValueError(names.unknown("field of processor", key, _FIELDS))
  if not cfg.get("source"):
    raise ValueError("processor.source is not set: the checkpoint whose files prepare the text")
  kind = system(cfg["source"]).inputs
  if kind in matching_training.KINDS:
    return matching_training.make(cfg)
  if kind not in decoding.BATCHES:
    kinds = ", ".join((*decoding.BATCHES, *matching_training.KINDS))
    raise ValueError(f"{cfg['source']} is a {kind!r} model; kind='checkpoint' is for {kinds}")
  lengths = {k: cfg[k] for k in ("text_len", "read_len", "media_len") if k in cfg}
  return CheckpointProcessor(cfg["source"], **lengths)
