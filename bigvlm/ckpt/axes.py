"""Moving axes of stored tensors by einops patterns, of whole tensors and of slices.

A pattern's left side describes the stored tensor, `(h d)` being one axis made of two; its
right side, single names only, a layer of the parameter. Sizes come from the parameter.
"""

import math
import re
from collections.abc import Sequence

import einops
import numpy as np


def sides(axes: str, rank: int) -> tuple[list[list[str]], list[str]]:
  """The groups of names of each stored axis, and the names of the parameter's axes.

  `axes` "" stands for `rank` axes that stay as they are.
  """
  if not axes:
    found = [f"a{n}" for n in range(rank)]
    return [[name] for name in found], found
  left, right = axes.split("->")
  groups = [m[1].split() if m[1] else [m[0]] for m in re.finditer(r"\(([^)]*)\)|\S+", left)]
  return groups, right.split()


def stacked(axes: str) -> str:
  """A pattern in which parameters take turns (`+`) as that of all of them stacked in front."""
  left, right = axes.split("->")
  return f"{left.replace('+', 'turn')} -> turn {right.strip()}"


def stored_shape(axes: str, shape: Sequence[int]) -> tuple[int, ...]:
  """Shape of the stored tensor that becomes a parameter of `shape`."""
  groups, right = sides(axes, len(shape))
  sizes = _sizes(right, shape)
  return tuple(math.prod(sizes[name] for name in group) for group in groups)


def to_param(x: np.ndarray, axes: str, shape: Sequence[int]) -> np.ndarray:
  """A stored tensor as a parameter of `shape`."""
  if not axes:
    return x
  _, right = sides(axes, len(shape))
  sizes = {n: s for n, s in _sizes(right, shape).items() if n != "1"}
  return einops.rearrange(x, axes, **sizes)


def to_stored(x: np.ndarray, axes: str) -> np.ndarray:
  """The inverse of `to_param`."""
  if not axes:
    return x
  left, right = axes.split("->")
  return einops.rearrange(x, f"{right} -> {left}")


def stored_slice(
  axes: str, shape: Sequence[int], index: Sequence[slice]
) -> tuple[tuple[slice, ...], tuple[int, ...], tuple[slice, ...]]:
  """What to read for a slice of a parameter.

  An axis of the parameter that is the first of its stored axis is cut when reading; a cut
  of any other is made afterwards.

  Args:
    axes: the pattern. shape: of the whole parameter (one layer). index: a slice for every axis,
      of step 1.

  Returns:
    The slice of the stored tensor, the parameter shape that it gives, and the rest of the cut
    within that.
  """
  groups, right = sides(axes, len(shape))
  sizes = _sizes(right, shape)
  wanted = {n: s.indices(sizes[n])[:2] for n, s in zip(right, index, strict=True)}
  wanted.setdefault("1", (0, 1))
  read, got = [], dict(sizes)
  for group in groups:
    whole = math.prod(sizes[name] for name in group)
    first = next((name for name in group if sizes[name] > 1), group[0])
    start, stop = wanted[first]
    unit = whole // sizes[first]
    read.append(slice(start * unit, stop * unit))
    got[first] = stop - start
  within = []
  for name in right:
    start, stop = wanted[name]
    cut_already = got[name] != sizes[name] or (start, stop) == (0, sizes[name])
    within.append(slice(None) if cut_already else slice(start, stop))
  return tuple(read), tuple(got[name] for name in right), tuple(within)


def _sizes(right: Sequence[str], shape: Sequence[int]) -> dict[str, int]:
  if len(right) != len(shape):
    raise ValueError(f"pattern '... -> {' '.join(right)}' is for another rank than {list(shape)}")
  return dict(zip(right, shape, strict=True)) | {"1": 1}
