"""Which device holds which part of a parameter: rules by name, else the fsdp fallback."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from jax.sharding import Mesh, NamedSharding, PartitionSpec

from bigvlm.utils import names
from bigvlm.utils import tree as tree_lib

Rule = tuple[str, Sequence[str | Sequence[str] | None]]


def shardings(tree: Any, mesh: Mesh, rules: Sequence[Rule] = (), params: Any = None) -> Any:
  """Sharding of every leaf of a tree.

  The first rule whose regular expression matches a whole '/'-joined name wins. Its
  spec names one mesh axis (or None, or a tuple of axes) for each trailing
  dimension, so that a rule for `[in, out]` serves stacked `[depth, in, out]`
  too. Without a rule the largest dimension that `fsdp` divides is cut over it, the
  last of equals; a leaf without one is replicated.

  Args:
    tree: pytree of anything with `.shape`: the parameters, or a tree that holds copies of
      them under longer names (an optimiser state, an average) when `params` is given.
    mesh: the mesh.
    rules: ((regex, (axis or None per trailing dimension)), ...).
    params: the parameters that `tree` belongs to. A leaf whose name ends in a
      parameter's name and that has its shape is laid out like it; any other
      leaf gets the fallback (factored moments, counters).

  Returns:
    The same tree of `NamedSharding`.

  Raises:
    ValueError: a rule with an axis that is not in the mesh, with the wrong
      number of dimensions, with an axis that does not divide a dimension (names
      tensor, shape and axis), or one that matches no parameter.
  """
  for pattern, spec in rules:
    for axis in _axes(spec):
      if axis not in mesh.shape:
        raise ValueError(f"rule {pattern!r}: " + names.unknown("mesh axis", axis, mesh.shape))
  flat = tree_lib.flatten(tree if params is None else params)
  owners = {name: tuple(leaf.shape) for name, leaf in flat.items()}
  hits = tree_lib.match(owners, [pattern for pattern, _ in rules], "rules")
  chosen = dict(zip(owners, hits, strict=True))

  def of(name, leaf):
    shape = tuple(leaf.shape)
    hit = chosen.get(_owner(name, shape, owners), -1)
    spec = _fallback(shape, mesh) if hit < 0 else _by_rule(name, shape, *rules[hit], mesh)
    return NamedSharding(mesh, spec)

  return tree_lib.map_named(of, tree)


def _axes(spec: Sequence) -> list[str]:
  out = []
  for entry in spec:
    out += [] if entry is None else [entry] if isinstance(entry, str) else list(entry)
  return out


def _owner(name: str, shape: tuple, owners: Mapping[str, tuple]) -> str | None:
  """Longest ending of `name` that is a parameter of the same shape."""
  parts = name.split("/")
  for start in range(len(parts)):
    ending = "/".join(parts[start:])
    if ending in owners:
      return ending if owners[ending] == shape else None
  return None


def _by_rule(name: str, shape: tuple, pattern: str, spec: Sequence, mesh: Mesh) -> PartitionSpec:
  if len(spec) > len(shape):
    raise ValueError(
      f"rule {pattern!r} names {len(spec)} dimensions, {name} has shape {list(shape)}"
    )
  full = (None,) * (len(shape) - len(spec)) + tuple(spec)
  for size, entry in zip(shape, full, strict=True):
    parts = math.prod(mesh.shape[axis] for axis in _axes((entry,)))
    if size % parts:
      raise ValueError(
        f"rule {pattern!r} cuts {name} of shape {list(shape)} over mesh axis {entry!r}: "
        f"{size} is not divisible by {parts}"
      )
  return PartitionSpec(*full)


def _fallback(shape: tuple[int, ...], mesh: Mesh) -> PartitionSpec:
  parts = mesh.shape["fsdp"]
  sizes = [(size, dim) for dim, size in enumerate(shape) if size % parts == 0 and size > 0]
  if parts == 1 or not sizes:
    return PartitionSpec()
  _, dim = max(sizes)
  return PartitionSpec(*(None,) * dim, "fsdp")
