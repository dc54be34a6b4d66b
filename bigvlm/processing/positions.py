"""Positions of text with pictures and videos in it, on several axes (M-RoPE, arXiv 2409.12191).

A text token has the same number on all three axes, one more than the largest before it. The tokens
of a picture or video count frames, rows and columns from there; behind it the text goes on after as
many as its grid is high or wide. Reference: `get_rope_index` of transformers.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np


class Span(NamedTuple):
  """One picture or video: its grid (t, h, w) in tokens, and how far apart its frames are."""

  grid: tuple[int, int, int]
  interval: float | np.floating = 1


def places(span: Span, start: int) -> np.ndarray:
  """Frame, row and column, int64 [t * h * w, 3], of the tokens of a picture or video from `start`.

  Times are cut to whole numbers before `start` is added, in the interval's own dtype.
  """
  t, h, w = span.grid
  steps = np.arange(t)
  if isinstance(span.interval, np.floating):
    steps = steps.astype(span.interval.dtype)
  times = (steps * span.interval).astype(np.int64)
  frames, rows, columns = np.meshgrid(times, np.arange(h), np.arange(w), indexing="ij")
  return np.stack([frames, rows, columns], axis=-1).reshape(-1, 3) + start


def mrope(
  kinds: np.ndarray, spans: Mapping[int, Sequence[Span]], mask: np.ndarray | None = None
) -> np.ndarray:
  """Positions int32 [B, T, 3]; those of padding are 0.

  Args:
    kinds: int [B, T], what each token stands for: 0 = text, another number a kind of media.
    spans: kind -> its pictures in reading order, over all rows.
    mask: [B, T], 0 = padding, which has no place in the text; None = none.

  Raises:
    ValueError: runs of media tokens that are not what the spans say; names the row.
  """
  out = np.zeros((*kinds.shape, 3), np.int64)
  left = {kind: iter(found) for kind, found in spans.items()}
  for row, found in enumerate(kinds):
    real = np.ones(found.shape, bool) if mask is None else mask[row] > 0
    out[row, real] = _row(found[real].tolist(), left, row)
  return out.astype(np.int32)


def _row(kinds: list[int], left: Mapping[int, Iterator[Span]], row: int) -> np.ndarray:
  parts, at, start = [np.zeros((0, 3), np.int64)], 0, 0
  while at < len(kinds):
    kind, end = kinds[at], at
    if kind == 0:
      while end < len(kinds) and kinds[end] == 0:
        end += 1
      parts.append(np.repeat(np.arange(start, start + end - at)[:, None], 3, axis=1))
      start += end - at
    else:
      span = next(left.get(kind, iter(())), None)
      if span is None:
        raise ValueError(f"row {row} has media tokens at {at} that no grid is left for")
      end = at + int(np.prod(span.grid))
      if kinds[at:end] != [kind] * (end - at):
        raise ValueError(
          f"row {row} has a picture or video of which the {end - at} tokens are apart"
        )
      parts.append(places(span, start))
      start += max(span.grid[1:])
    at = end
  return np.concatenate(parts)
