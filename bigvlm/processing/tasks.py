"""Ops that make the prefix, suffix and pictures of a task of the fields that its records have."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from bigvlm.processing import image as images
from bigvlm.processing.image import BadExample

_FIELD = re.compile(r"\{(\w+)\}")
_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


def _want(example: Mapping[str, Any], field: str) -> Any:
  if field not in example:
    raise BadExample(f"has no field {field!r}; it has {', '.join(example)}", _record(example))
  return example[field]


def _record(example: Mapping[str, Any]) -> str:
  return str(example.get("id", ""))


def template(
  example: Mapping[str, Any], pattern: str, to: str = "prefix", sep: str = ", "
) -> dict[str, Any]:
  """The example with the field `to` made of others: "answer en {question}".

  An example that has the field already keeps it.

  Args:
    example: any.
    pattern: text with `{field}` where the value of that field goes, as it is.
    to: field that is made.
    sep: between the items of a field that is a list.

  Raises:
    BadExample: a field that the example lacks.
  """
  if to in example:
    return dict(example)

  def value(found: re.Match) -> str:
    it = _want(example, found[1])
    return sep.join(map(str, it)) if isinstance(it, (list, tuple)) else str(it)

  return {**example, to: _FIELD.sub(value, pattern)}


def letter_choices(
  example: Mapping[str, Any],
  choices: str = "choices",
  label: str = "label",
  shuffle: bool = True,
  *,
  rng: np.random.Generator,
) -> dict[str, Any]:
  """The example with `options` "(A) cat, (B) dog" and `letter`, that of the right one.

  Args:
    example: has a list of texts and the index of the right one, from 0.
    choices, label: which fields these are.
    shuffle: whether the choices change places, every time anew.
    rng: source of randomness.

  Raises:
    BadExample: a missing field, an index beyond the list, more choices than letters.
  """
  texts, right = list(_want(example, choices)), _want(example, label)
  if not (isinstance(right, int) and 0 <= right < len(texts) <= len(_LETTERS)):
    raise BadExample(
      f"{label}={right!r} is not the index of one of {len(texts)} {choices} "
      f"(at most {len(_LETTERS)})",
      _record(example),
    )
  order = rng.permutation(len(texts)).tolist() if shuffle else list(range(len(texts)))
  options = ", ".join(f"({_LETTERS[i]}) {texts[k]}" for i, k in enumerate(order))
  return {**example, "options": options, "letter": _LETTERS[order.index(right)]}


def frames(
  pictures: Sequence[Any],
  count: int,
  stride: int = 1,
  random_start: bool = False,
  *,
  rng: np.random.Generator,
) -> list[Any]:
  """`count` frames of a video, every `stride`-th; a video that is too short begins again.

  Args:
    pictures: all frames in order, as paths or pixels.
    count, stride: how many, how far apart.
    random_start: begins anywhere that leaves enough frames, else with the first one.
    rng: source of randomness.
  """
  if isinstance(pictures, (str, bytes)) or not len(pictures):
    raise BadExample("field 'image' is not a list of frames")
  spare = len(pictures) - (count - 1) * stride
  start = int(rng.integers(spare)) if random_start and spare > 1 else 0
  found = list(pictures[start::stride])[:count]
  return [found[i % len(found)] for i in range(count)]


def draw_box(
  example: Mapping[str, Any], box: str = "box", color: Sequence[int] = (255, 0, 0)
) -> dict[str, Any]:
  """The example with a box drawn into its picture, one pixel wide.

  Args:
    example: `image`, and in `field` y0 x0 y1 x1 in 0..1.
    box: which field that is.
    color: red, green, blue.
  """
  corners = np.asarray(_want(example, box), np.float64)
  if corners.shape != (4,) or not np.all((corners >= 0) & (corners <= 1)):
    raise BadExample(f"{box}={_want(example, box)} is not 4 numbers in 0..1", _record(example))
  pixels = np.array(images.decode(_want(example, "image"), record=_record(example)))
  last = np.array(pixels.shape[:2] * 2) - 1
  y0, x0, y1, x1 = np.rint(corners * last).astype(int)
  for line in (np.s_[[y0, y1], x0 : x1 + 1], np.s_[y0 : y1 + 1, [x0, x1]]):
    pixels[line] = color
  return {**example, "image": pixels}


def read_mask(mask: Any) -> np.ndarray:
  """bool [H, W] of a picture file (bytes or a path) or an array: what is brighter than half."""
  if isinstance(mask, np.ndarray) and mask.dtype == bool:
    return mask
  return images.decode(mask)[..., 0] > 127
