"""TFDS and ArrayRecord, both without TensorFlow."""

import glob
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from bigvlm.data import sources
from bigvlm.processing.image import BadExample

_BINARY = ("image", "mask")


def _text(value: Any, where: str, field: str) -> Any:
  """bytes -> str, in lists as well; everything else as it is."""
  if isinstance(value, bytes):
    try:
      return value.decode("utf-8")
    except UnicodeDecodeError:
      raise BadExample(f"field {field!r} is not UTF-8 text", where) from None
  if isinstance(value, list):
    return [_text(v, where, field) for v in value]
  if isinstance(value, np.ndarray) and value.dtype == object:
    return [_text(v, where, field) for v in value.tolist()]
  return value


def _example(record, fields: sources.Fields, binary: Sequence[str], where: str) -> sources.Example:
  example = fields(record, where)
  out = {k: v if k in binary else _text(v, where, k) for k, v in example.items()}
  return {**out, "id": where}


class Tfds:
  """A prepared TFDS dataset in ArrayRecord files, read without TensorFlow.

  Images come as the stored bytes and are decoded by the processor.

  Args:
    dataset: TFDS name ("ai2d", "my_set:1.0.0"), or "" with `directory`.
    split: e.g. "train", "train[:90%]".
    data_dir: where TFDS keeps its data.
    directory: folder of one prepared version; needs no builder code.
    fields: names a record must have, or {example field: feature}.
    constant: fields added to every example.
    binary: fields that stay bytes; other bytes become text.
    name: name of the source; default: the dataset's.

  Raises:
    ValueError: when TFDS does not find the dataset or the split, or it has no random access.
  """

  def __init__(
    self,
    dataset: str = "",
    split: str = "train",
    data_dir: str | None = None,
    directory: str | None = None,
    fields: Sequence[str] | Mapping[str, str] = ("image",),
    constant: Mapping[str, Any] | None = None,
    binary: Sequence[str] = _BINARY,
    name: str = "",
  ):
    if bool(dataset) == bool(directory):
      raise ValueError("source 'tfds' needs either `dataset` or `directory`")
    self._where = (dataset, split, data_dir, directory)
    self._fields = sources.Fields(fields, constant)
    self._binary = tuple(binary)
    self.name = name or dataset or os.path.basename(os.path.normpath(str(directory)))
    self._open()

  def _open(self) -> None:
    import tensorflow_datasets as tfds

    dataset, split, data_dir, directory = self._where
    try:
      if directory:
        builder = tfds.builder_from_directory(directory)
      else:
        builder = tfds.builder(dataset, data_dir=data_dir)
      skip = {
        key: tfds.decode.SkipDecoding()
        for key, feature in builder.info.features.items()
        if isinstance(feature, tfds.features.Image)
      }
      self._data = builder.as_data_source(split=split, decoders=skip or None)
    except Exception as e:  # TFDS raises many kinds; all of them mean that it cannot be read.
      what = str(e).strip().splitlines()[0] if str(e).strip() else type(e).__name__
      raise ValueError(f"source {self.name!r} (tfds, split {split!r}): {what}") from e

  def __len__(self) -> int:
    return len(self._data)

  def __getitem__(self, i: int) -> sources.Example:
    return _example(self._data[i], self._fields, self._binary, f"{self.name}/{self._where[1]}[{i}]")

  def __getstate__(self) -> dict:
    return {k: v for k, v in self.__dict__.items() if k != "_data"}

  def __setstate__(self, state: dict) -> None:
    self.__dict__.update(state)
    self._open()


class ArrayRecord:
  """ArrayRecord files of `tf.train.Example` records, the form that most tools write.

  Args:
    paths: one path or pattern, or several.
    fields, constant, binary: see `Tfds`.
    name: name of the source.

  A feature with one value is that value (bytes, str, int or float), with several a list or array.
  """

  def __init__(
    self,
    paths: str | Sequence[str],
    fields: Sequence[str] | Mapping[str, str] = ("image",),
    constant: Mapping[str, Any] | None = None,
    binary: Sequence[str] = _BINARY,
    name: str = "arrayrecord",
  ):
    self.name = name
    self._fields = sources.Fields(fields, constant)
    self._binary = tuple(binary)
    patterns = [paths] if isinstance(paths, (str, os.PathLike)) else list(paths)
    self._files = []
    for pattern in patterns:
      found = sorted(glob.glob(os.fspath(pattern)))
      if not found:
        raise ValueError(f"source {name!r}: no file matches {os.fspath(pattern)!r}")
      self._files += found
    self._open()

  def _open(self) -> None:
    from array_record.python import array_record_data_source

    try:
      self._data = array_record_data_source.ArrayRecordDataSource(self._files)
      self._len = len(self._data)
    except Exception as e:  # The C++ reader's errors.
      raise ValueError(f"source {self.name!r}: {e} (files: {', '.join(self._files)})") from None

  def __len__(self) -> int:
    return self._len

  def __getitem__(self, i: int) -> sources.Example:
    where = f"{self.name}[{i}]"
    return _example(parse_example(self._data[i], where), self._fields, self._binary, where)

  def __getstate__(self) -> dict:
    return {k: v for k, v in self.__dict__.items() if k != "_data"}

  def __setstate__(self, state: dict) -> None:
    self.__dict__.update(state)
    self._open()


def parse_example(data: bytes, where: str = "") -> dict[str, Any]:
  """A serialised `tf.train.Example` -> {name: value}; BadExample when it is none."""
  from google.protobuf import message
  from tensorflow_datasets.proto import tf_example_pb2

  try:
    parsed = tf_example_pb2.Example.FromString(data)
  except message.DecodeError as e:
    raise BadExample(f"is no tf.train.Example ({e})", where) from None
  out: dict[str, Any] = {}
  for key, feature in parsed.features.feature.items():
    kind = feature.WhichOneof("kind")
    values = list(getattr(feature, kind).value) if kind else []
    if len(values) == 1:
      out[key] = values[0]
    elif kind in ("int64_list", "float_list"):
      out[key] = np.array(values, np.int64 if kind == "int64_list" else np.float32)
    else:
      out[key] = values
  return out


def serialize_example(example: Mapping[str, Any]) -> bytes:
  """{name: bytes, str, int, float, or a list or array of one of these} -> tf.train.Example."""
  from tensorflow_datasets.proto import tf_example_pb2

  proto = tf_example_pb2.Example()
  for key, value in example.items():
    if isinstance(value, (np.ndarray, np.generic)):
      value = np.ravel(value).tolist()
    values = list(value) if isinstance(value, (list, tuple)) else [value]
    feature = proto.features.feature[key]
    if all(isinstance(v, (bytes, str)) for v in values):
      feature.bytes_list.value.extend(v.encode() if isinstance(v, str) else v for v in values)
    elif all(isinstance(v, int) for v in values):
      feature.int64_list.value.extend(int(v) for v in values)
    elif all(isinstance(v, (int, float)) for v in values):
      feature.float_list.value.extend(float(v) for v in values)
    else:
      raise ValueError(f"field {key!r} holds {type(values[0]).__name__}; want bytes, text, numbers")
  return proto.SerializeToString()


def write_array_record(path: str, examples: Iterable[Mapping[str, Any]]) -> None:
  """Writes examples as an ArrayRecord file that `ArrayRecord` and other tools read."""
  from array_record.python import array_record_module

  writer = array_record_module.ArrayRecordWriter(os.fspath(path), "group_size:1")
  for example in examples:
    writer.write(serialize_example(example))
  writer.close()
