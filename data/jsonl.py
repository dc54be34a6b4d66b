"""JSON Lines with image paths: `{"image": "a.jpg", "prefix": "...", "suffix": "..."}` a line.

`image` may be a list of paths: several pictures, or the frames of a video in their order.
"""

import json
import os
import threading
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from bigvlm.data import sources
from bigvlm.processing.image import BadExample

_CHUNK = 1 << 24
_LOOK_AT = 20


def line_table(path: str) -> tuple[np.ndarray, np.ndarray]:
  """Where the lines of a file are: begin and end byte int64 [lines, 2], line numbers [lines].

  Numbers are counted from 1; blank lines have none of either.
  """
  breaks, size = [], 0
  with open(path, "rb") as f:
    while chunk := f.read(_CHUNK):
      breaks.append(np.flatnonzero(np.frombuffer(chunk, np.uint8) == 10) + size)
      size += len(chunk)
  ends = np.concatenate([*breaks, [size]]).astype(np.int64)
  begins = np.concatenate([[0], ends[:-1] + 1]).astype(np.int64)
  kept = ends - begins > 1  # A line of one byte cannot hold an object.
  return np.stack([begins, ends], 1)[kept], np.flatnonzero(kept) + 1


class Jsonl:
  """Random access to the records of a JSON Lines file.

  Args:
    path: the file.
    images: folder that relative paths in `image` (one or a list) and `mask` start from; default:
      the file's own.
    fields: names a record must have, or {example field: record field}; see `sources.Fields`.
    constant: fields added to every example.
    name: name of the source; default: the file's name.

  An example's `id` is "FILE:LINE". Records are read as they are needed; the index of a file of a
  million lines takes 24 MB.

  Raises:
    ValueError: no such file, no record in it, or none of the first 20 records is usable (the error
      of the first names file, line and field). Later a bad record raises BadExample.
  """

  def __init__(
    self,
    path: str,
    images: str | None = None,
    fields: Sequence[str] | Mapping[str, str] = ("image", "prefix", "suffix"),
    constant: Mapping[str, Any] | None = None,
    name: str = "",
  ):
    self.path = os.fspath(path)
    self.name = name or os.path.basename(self.path)
    self._images = images if images is not None else os.path.dirname(os.path.abspath(self.path))
    self._fields = sources.Fields(fields, constant)
    self._fd: int | None = None
    self._lock = threading.Lock()
    try:
      self._spans, self._numbers = line_table(self.path)
    except OSError as e:
      raise ValueError(f"source {self.name!r}: file {self.path!r}: {e.strerror}") from None
    if not len(self._spans):
      raise ValueError(f"source {self.name!r}: file {self.path!r} has no records")
    self._check_first()

  def _check_first(self) -> None:
    first = None
    for i in range(min(_LOOK_AT, len(self))):
      try:
        self[i]
        return
      except BadExample as e:
        first = first or e
    raise first

  def __len__(self) -> int:
    return len(self._spans)

  def __getitem__(self, i: int) -> sources.Example:
    begin, end = self._spans[i].tolist()
    where = f"{self.path}:{self._numbers[i]}"
    line = os.pread(self._file(), end - begin, begin)
    try:
      record = json.loads(line)
    except UnicodeDecodeError:
      raise BadExample("is not UTF-8 text", where) from None
    except (ValueError, RecursionError) as e:
      what = f"{e.msg} at column {e.colno}" if isinstance(e, json.JSONDecodeError) else str(e)
      raise BadExample(f"is not JSON ({what})", where) from None
    if not isinstance(record, dict):
      raise BadExample(f"is a JSON {type(record).__name__}, not an object", where)
    example = {**self._fields(record, where), "id": where}
    if "image" in example:
      example["image"] = self._placed(example["image"], where)
    if isinstance(example.get("mask"), str):
      example["mask"] = os.path.join(self._images, example["mask"])
    return example

  def _placed(self, value: Any, where: str) -> str | list[str]:
    paths = value if isinstance(value, list) else [value]
    if not paths or not all(isinstance(path, str) for path in paths):
      raise BadExample("field 'image' is not a path, nor a list of paths", where)
    paths = [os.path.join(self._images, path) for path in paths]
    return paths if isinstance(value, list) else paths[0]

  def _file(self) -> int:
    with self._lock:
      if self._fd is None:
        self._fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
      return self._fd

  def __getstate__(self) -> dict:
    return {**self.__dict__, "_fd": None, "_lock": None}

  def __setstate__(self, state: dict) -> None:
    self.__dict__.update(state, _lock=threading.Lock())

  def __del__(self):
    if getattr(self, "_fd", None) is not None:
      os.close(self._fd)
