"""Several examples in one row: their texts without the padding between them, their pictures beside.

Every example is a segment of its own, so none sees another (`layers.masks`), and keeps its own
positions: a token-normalised loss is that of the same examples in rows of their own.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from bigvlm.processing.processor import Arrays, Spec

TEXT = ("tokens", "segment", "block", "order", "positions", "media_index", "see")
READ = ("read", "labels", "weights")


class Packed:
  """A processor whose rows hold `count` examples of another; anything else is asked of that one.

  Attributes:
    one: the processor of a single example.
    count: examples of a row. length: positions of its text.
    first, shift: rows of the connector's output that belong to no picture, and rows that the
      pictures of one example take (`Soft` has the former in front).
  """

  def __init__(self, one: Any, count: int, length: int, first: int = 0, shift: int = 0):
    spec = one.spec()
    if "tokens" not in spec or "target_tokens" in spec:
      raise ValueError("pack is for models that read one text: decoders alone or behind encoders")
    alone = spec["tokens"][0][0]
    if not alone <= length <= count * alone:
      raise ValueError(
        f"pack.length={length} must lie between one example, {alone}, and {count} of them, "
        f"{count * alone}"
      )
    self.one, self.count, self.length = one, count, length
    self.first, self.shift = first, shift
    self._media = [k.removesuffix("_item") for k in spec if k.endswith("_item")]

  def __getattr__(self, name: str) -> Any:
    if name == "one":  # Of a copy that a worker process is still reading.
      raise AttributeError(name)
    return getattr(self.one, name)

  def __call__(self, example: Any, rng: np.random.Generator) -> Arrays:
    """The row of one example, as `one` makes it."""
    return self.one(example, rng)

  def blank(self) -> Arrays:
    """A row without an example: `weights` 0, `bad` 1."""
    return self.join([self.one.blank()] * self.count)[0]

  def spec(self) -> Spec:
    """{name: (shape, dtype)} of a row."""
    return {k: (v.shape, v.dtype) for k, v in self.blank().items()}

  def join(self, rows: Sequence[Arrays]) -> tuple[Arrays, int]:
    """One row of `count` rows of `one`, and how many of their examples found no place in it."""
    out = {k: _padding(k, v, self.length) for k, v in rows[0].items() if k in TEXT}
    reads: dict[str, list[np.ndarray]] = {k: [] for k in READ}
    at, items, left = 0, 0, 0
    for n, row in enumerate(rows):
      real = np.flatnonzero(row["segment"] > 0)
      # An unusable record's row of the filler is left out, but for one: no row is all padding.
      keep = at + len(real) <= self.length and (not row["bad"] or (n == len(rows) - 1 and not at))
      left += not keep and not row["bad"]
      place = np.zeros(len(row["segment"]), np.int32)
      if keep:
        span = slice(at, at + len(real))
        place[real] = np.arange(at, at + len(real), dtype=np.int32)
        for name in out:
          out[name][span] = self._moved(name, row[name][real], n, items)
        at += len(real)
      reads["read"].append(place[row["read"]])
      reads["labels"].append(row["labels"])
      reads["weights"].append(row["weights"] * keep)
      items += max((int(row[f"{m}_item"].max(initial=0)) for m in self._media), default=0)
    out |= {k: np.concatenate(v) for k, v in reads.items()}
    out["bad"] = np.asarray(all(row["bad"] for row in rows), np.int32)
    for name in rows[0].keys() - out.keys():
      out[name] = np.concatenate([row[name] for row in rows])
    self._number(out, rows)
    return out, left

  def _moved(self, name: str, x: np.ndarray, n: int, items: int) -> np.ndarray:
    """Values of example n, which comes after `items` pictures."""
    if name == "segment":
      return np.full_like(x, n + 1)
    if name == "media_index":
      return np.where(x >= self.first, x + n * self.shift, x)
    if name == "see":  # An empty range stays empty.
      pairs = x.reshape(*x.shape[:-1], -1, 2)
      some = pairs[..., :1] <= pairs[..., 1:]
      return np.where(some, pairs + items, pairs).reshape(x.shape)
    return x

  def _number(self, out: Arrays, rows: Sequence[Arrays]) -> None:
    """Numbers the pictures of a row through."""
    for name in self._media:
      parts, items = [], 0
      for row in rows:
        own = row[f"{name}_item"]
        parts.append(np.where(own > 0, own + items, 0).astype(own.dtype))
        items += max(int(row[f"{m}_item"].max(initial=0)) for m in self._media)
      out[f"{name}_item"] = np.concatenate(parts)


def _padding(name: str, like: np.ndarray, length: int) -> np.ndarray:
  """`length` positions that are nobody's, of no picture, and see none."""
  if name == "see":
    return np.tile(np.array([1, 0], like.dtype), (length, like.shape[1] // 2))
  return np.full((length, *like.shape[1:]), -1 if name == "media_index" else 0, like.dtype)
