"""Weighted mixtures of sources whose proportions are exact over any window."""

import fractions
import math
from collections.abc import Mapping, Sequence
from typing import Any

from bigvlm.data import sources as sources_lib
from bigvlm.processing import ops

_DENOMINATOR = 1_000_000


def integer_parts(weights: Sequence[float]) -> tuple[int, ...]:
  """Weights as integers in the same proportion (weights are taken to one part in a million)."""
  total = sum(fractions.Fraction(float(w)) for w in weights)
  shares = [(fractions.Fraction(float(w)) / total).limit_denominator(_DENOMINATOR) for w in weights]
  scale = math.lcm(*(s.denominator for s in shares))
  if scale > 10**12:  # Many odd weights: round on one common grid instead.
    return tuple(max(1, round(s * _DENOMINATOR)) for s in shares)
  parts = [int(s * scale) for s in shares]
  divisor = math.gcd(*parts)
  return tuple(max(1, p // divisor) for p in parts)


def locate(k: int, parts: Sequence[int]) -> tuple[int, int]:
  """(source, draw of that source) at position k of a mixture.

  Sources are taken one by one: the first gets its share of all positions, evenly spread, the next
  its share of what is left, and so on. Among any n positions in a row, the number that a source
  gets differs from its share by less than 2. O(number of sources) for any k.
  """
  rest = sum(parts)
  begin, end = k, k + 1
  for i, part in enumerate(parts):
    next_begin, next_end = begin * (rest - part) // rest, end * (rest - part) // rest
    if next_end == next_begin:
      return i, begin - next_begin
    rest -= part
    begin, end = next_begin, next_end
  raise AssertionError("the last source takes what is left")


class Mixture:
  """Sources with weights and preprocessing.

  Args:
    sources: the sources.
    weights: positive, one a source; default: all equal.
    chains: preprocessing a source, called as `chain(example, rng)`.

  Attributes:
    names: unique name of each source.
    parts: weights as integers.
  """

  def __init__(
    self,
    sources: Sequence[sources_lib.Source],
    weights: Sequence[float] | None = None,
    chains: Sequence[ops.Chain] | None = None,
  ):
    if not sources:
      raise ValueError("data.sources is empty: a mixture needs at least one source")
    weights = [1.0] * len(sources) if weights is None else list(weights)
    chains = [ops.Chain()] * len(sources) if chains is None else list(chains)
    if not len(sources) == len(weights) == len(chains):
      raise ValueError(f"{len(sources)} sources, {len(weights)} weights, {len(chains)} chains")
    self.sources, self.weights, self.chains = list(sources), weights, chains
    self.names = _unique([s.name for s in sources])
    for source, name, weight in zip(sources, self.names, weights, strict=True):
      if not (weight > 0 and math.isfinite(weight)):
        raise ValueError(f"source {name!r}: weight={weight} must be above 0; remove it instead")
      if not len(source):
        raise ValueError(f"source {name!r} has no examples")
    self.parts = integer_parts(weights)

  def __len__(self) -> int:
    """Number of examples of all sources together."""
    return sum(len(s) for s in self.sources)


def _unique(names: Sequence[str]) -> list[str]:
  out: list[str] = []
  for name in names:
    n, unique = 2, name
    while unique in out:
      unique, n = f"{name}#{n}", n + 1
    out.append(unique)
  return out


def make(cfg: Mapping[str, Any] | Mixture, workdir: str | None = None) -> Mixture:
  """Builds a mixture of `dict(sources=(dict(kind=, weight=, ops=(), ...), ...))`."""
  if isinstance(cfg, Mixture):
    return cfg
  cfg = sources_lib.plain(cfg)
  records = cfg.get("sources") or ()
  for record in records:
    if not isinstance(record, Mapping):
      raise ValueError(f"data.sources holds a {type(record).__name__}; want dict(kind=NAME, ...)")
  return Mixture(
    [sources_lib.make({**r, "ops": ()}, workdir) for r in records],
    [r.get("weight", 1.0) for r in records],
    [ops.chain(r.get("ops", ())) for r in records],
  )
