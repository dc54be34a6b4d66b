"""Boxes and masks as text: `<locNNNN>` and `<segNNN>` (PaliGemma, arXiv 2407.07726).

A box is (y0, x0, y1, x1) in [0, 1] of height and width; a mask is 16 codes of 0..127.
"""

import dataclasses
import re
from collections.abc import Sequence

LOCS = 1024
SEGS = 128
CODES = 16

# The groups of the published parser: text before, four locations, 16 codes or none, a name.
_OBJECT = re.compile(
  r"(.*?)"
  + r"<loc(\d{4})>" * 4
  + r"\s*"
  + "(?:" + r"<seg(\d{3})>" * CODES + ")?"
  + r"\s*([^;<>]+)? ?(?:; )?",
  re.DOTALL,
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Found:
  """One object of an answer.

  Attributes:
    box: (y0, x0, y1, x1) in [0, 1].
    codes: 16 mask codes, or None.
    name: what the answer calls it; may be "".
    valid: False when a number is out of range or the box has no area (it then counts IoU 0).
  """

  box: tuple[float, float, float, float]
  codes: tuple[int, ...] | None
  name: str
  valid: bool


def encode_box(box: Sequence[float]) -> str:
  """(y0, x0, y1, x1) in [0, 1] -> four location tokens, clip(round(c * 1023), 0, 1023)."""
  if len(box) != 4:
    raise ValueError(f"a box is (y0, x0, y1, x1), not {len(box)} numbers")
  return "".join(f"<loc{min(max(round(float(c) * (LOCS - 1)), 0), LOCS - 1):04d}>" for c in box)


def encode_codes(codes: Sequence[int]) -> str:
  """16 mask codes in 0..127 -> 16 `<segNNN>` tokens."""
  if len(codes) != CODES or not all(0 <= int(c) < SEGS for c in codes):
    raise ValueError(f"a mask is {CODES} codes of 0..{SEGS - 1}, not {list(codes)}")
  return "".join(f"<seg{int(c):03d}>" for c in codes)


def detect(objects: Sequence[tuple[Sequence[float], str]]) -> str:
  """[(box, name), ...] -> the answer of a 'detect' task, objects joined by ' ; '."""
  return " ; ".join(f"{encode_box(box)} {name}" for box, name in objects)


def segment(objects: Sequence[tuple[Sequence[float], Sequence[int], str]]) -> str:
  """[(box, codes, name), ...] -> the answer of a 'segment' task, objects joined by ' ; '."""
  return " ; ".join(
    f"{encode_box(box)}{encode_codes(codes)} {name}" for box, codes, name in objects
  )


def parse(text: str) -> list[Found]:
  """The objects of a 'detect' or 'segment' answer, in order; text between them is ignored."""
  out = []
  at = 0
  while True:
    match = _OBJECT.match(text, at)
    if match is None:
      return out
    groups = match.groups()
    locs = [int(g) for g in groups[1:5]]
    segs = None if groups[5] is None else tuple(int(g) for g in groups[5 : 5 + CODES])
    box = tuple(c / (LOCS - 1) for c in locs)
    valid = max(locs) < LOCS and box[2] > box[0] and box[3] > box[1]
    valid = valid and (segs is None or max(segs) < SEGS)
    out.append(Found(box, segs, (groups[-1] or "").strip(), valid))
    at = match.end()
