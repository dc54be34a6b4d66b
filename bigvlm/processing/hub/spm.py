"""Reads a sentencepiece model file: its pieces and settings, without its library.

The file is a protocol buffer; only what a tokenizer is built from is read (sentencepiece's
`sentencepiece_model.proto` has the field numbers).
"""

import dataclasses
import struct
from collections.abc import Iterator

NORMAL, UNKNOWN, CONTROL, USER, BYTE = 1, 2, 3, 4, 6
UNIGRAM, BPE = 1, 2


@dataclasses.dataclass(frozen=True)
class Model:
  """A sentencepiece model.

  Attributes:
    pieces: (text, score, type) of every id.
    kind: UNIGRAM or BPE. byte_fallback: whether unknown text becomes bytes.
    charsmap: compiled normalisation table, may be empty.
    unk, bos, eos: ids, -1 = none. names: their texts.
  """

  pieces: tuple[tuple[str, float, int], ...]
  kind: int
  byte_fallback: bool
  charsmap: bytes
  unk: int
  bos: int
  eos: int
  names: dict[str, str]


def read(data: bytes, where: str) -> Model:
  """Parses a model file.

  Raises:
    ValueError: it is none; `where` names it.
  """
  try:
    fields = list(_fields(data))
    pieces = tuple(_piece(value) for number, value in fields if number == 1)
    trainer = dict(_fields(next((v for n, v in fields if n == 2), b"")))
    normalizer = dict(_fields(next((v for n, v in fields if n == 3), b"")))
  except (IndexError, KeyError, TypeError, UnicodeDecodeError, struct.error) as e:
    raise ValueError(f"{where} is no sentencepiece model ({e})") from None
  if not pieces:
    raise ValueError(f"{where} is no sentencepiece model (it has no pieces)")

  def text(number: int, default: str) -> str:
    return trainer.get(number, default.encode()).decode() or default

  return Model(
    pieces,
    trainer.get(3, UNIGRAM),
    bool(trainer.get(35, 0)),
    normalizer.get(2, b""),
    _signed(trainer.get(40, 0)),
    _signed(trainer.get(41, 1)),
    _signed(trainer.get(42, 2)),
    {"unk": text(45, "<unk>"), "bos": text(46, "<s>"), "eos": text(47, "</s>")},
  )


def _piece(data: bytes) -> tuple[str, float, int]:
  fields = dict(_fields(data))
  return fields[1].decode(), fields.get(2, 0.0), fields.get(3, NORMAL)


def _signed(value: int) -> int:
  return value - (1 << 64) if value >> 63 else value


def _varint(data: bytes, at: int) -> tuple[int, int]:
  value = shift = 0
  while True:
    byte = data[at]
    value |= (byte & 0x7F) << shift
    at, shift = at + 1, shift + 7
    if byte < 0x80:
      return value, at


def _fields(data: bytes) -> Iterator[tuple[int, int | float | bytes]]:
  """(number, value) of every field of a message."""
  at = 0
  while at < len(data):
    key, at = _varint(data, at)
    kind = key & 7
    if kind == 0:
      value, at = _varint(data, at)
    elif kind == 1:
      value, at = struct.unpack_from("<d", data, at)[0], at + 8
    elif kind == 2:
      size, at = _varint(data, at)
      if at + size > len(data):
        raise IndexError("it is cut off")
      value, at = data[at : at + size], at + size
    elif kind == 5:
      value, at = struct.unpack_from("<f", data, at)[0], at + 4
    else:
      raise KeyError(f"wire type {kind}")
    yield key >> 3, value
