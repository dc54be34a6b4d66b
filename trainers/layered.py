"""Training single layers of a stack: a stage whose patterns name layers keeps them apart.

The layers of a stack are one tensor with a leading axis, so a pattern over its name takes all
or none. A stage with a pattern for `decoder/blocks/26/attn/q/kernel` has that tensor (and all
others of the stack) for every layer by itself: patterns, rates and decay are then the same
regular expressions as ever, and what is frozen has neither gradient nor optimiser state.
Checkpoints hold what the stage has; going over to another stage, or to a model that answers,
cuts or stacks again, which changes no number.
"""

import dataclasses
import re
from collections.abc import Iterable, Mapping
from typing import Any

import jax.numpy as jnp

from bigvlm.utils import tree as tree_lib

_STACKED = re.compile(r"(?P<stack>.*)/g(?P<group>\d+)/b(?P<kind>\d+)/(?P<rest>.*)")
_APART = re.compile(r"(?P<stack>.*)/(?P<layer>\d+)/(?P<rest>.*)")

# Stack -> (period, repeats) of each group.
Layout = tuple[tuple[str, tuple[tuple[int, int], ...]], ...]


def layout(flat: Mapping[str, Any]) -> Layout:
  """The stacks among parameters by name."""
  found: dict[str, dict[int, list[int]]] = {}
  for name, leaf in flat.items():
    match = _STACKED.fullmatch(name)
    if match:
      groups = found.setdefault(match["stack"], {})
      period, _ = groups.get(int(match["group"]), (0, 0))
      groups[int(match["group"])] = [max(period, int(match["kind"]) + 1), leaf.shape[0]]
  return tuple(
    (stack, tuple(tuple(groups[g]) for g in sorted(groups))) for stack, groups in found.items()
  )


def _offsets(groups: tuple[tuple[int, int], ...]) -> list[int]:
  """Number of the first layer of each group."""
  out = [0]
  for period, repeats in groups:
    out.append(out[-1] + period * repeats)
  return out


def _place(groups: tuple[tuple[int, int], ...], layer: int) -> tuple[int, int, int]:
  """(group, repeat, kind) of a layer."""
  offsets = _offsets(groups)
  group = max(g for g, first in enumerate(offsets[:-1]) if first <= layer)
  repeat, kind = divmod(layer - offsets[group], groups[group][0])
  return group, repeat, kind


def names(flat: Mapping[str, Any]) -> list[str]:
  """What the names of stacked parameters would be if every layer stood by itself."""
  stacks, out = dict(layout(flat)), []
  for name, leaf in flat.items():
    match = _STACKED.fullmatch(name)
    rows = range(leaf.shape[0]) if match else ()
    out += [_apart(match, stacks, row) for row in rows] if match else [name]
  return out


def _apart(match: re.Match, stacks: Mapping, row: int) -> str:
  groups, g = stacks[match["stack"]], int(match["group"])
  layer = _offsets(groups)[g] + row * groups[g][0] + int(match["kind"])
  return f"{match['stack']}/{layer}/{match['rest']}"


def cut(flat: Mapping[str, Any]) -> dict[str, Any]:
  """Stacked parameters by name, every layer by itself."""
  stacks, out = dict(layout(flat)), {}
  for name, leaf in flat.items():
    match = _STACKED.fullmatch(name)
    if match is None:
      out[name] = leaf
    else:
      out |= {_apart(match, stacks, row): leaf[row] for row in range(leaf.shape[0])}
  return out


def stack(flat: Mapping[str, Any], stacks: Layout) -> dict[str, Any]:
  """The inverse of `cut`, for the stacks of a layout."""
  groups, out, rows = dict(stacks), {}, {}
  for name, leaf in flat.items():
    match = _APART.fullmatch(name)
    if match is None or match["stack"] not in groups:
      out[name] = leaf
    else:
      g, repeat, kind = _place(groups[match["stack"]], int(match["layer"]))
      rows.setdefault(f"{match['stack']}/g{g}/b{kind}/{match['rest']}", {})[repeat] = leaf
  return out | {name: jnp.stack([x[r] for r in sorted(x)]) for name, x in rows.items()}


def conform(old: Mapping[str, Any], new: Mapping[str, Any]) -> Mapping[str, Any]:
  """Parameters by name in the form, stacked or apart, that `new` has them in."""
  stacks = layout(new)
  if layout(old) and not stacks:
    return cut(old)
  if stacks and not layout(old):
    return stack(old, stacks)
  return old


@dataclasses.dataclass(frozen=True)
class Layered:
  """A module over parameters whose layers stand apart.

  Attributes:
    module: the Linen module, whose layers run as "loop".
    stacks: where the layers belong.
  """

  module: Any
  stacks: Layout

  def __getattr__(self, name: str) -> Any:
    if name in ("module", "stacks"):  # While it is being unpickled.
      raise AttributeError(name)
    return getattr(self.module, name)

  def apply(self, variables: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
    """As the module's; nothing is copied: its loop takes layers apart (see `layers.blocks`)."""
    groups, out = dict(self.stacks), {}
    for name, leaf in tree_lib.flatten(variables["params"]).items():
      match = _APART.fullmatch(name)
      if match and match["stack"] in groups:
        g, repeat, kind = _place(groups[match["stack"]], int(match["layer"]))
        name = f"{match['stack']}/g{g}/{repeat}/b{kind}/{match['rest']}"
      out[name] = leaf
    return self.module.apply({**variables, "params": tree_lib.unflatten(out)}, *args, **kwargs)


def wrap(module: Any, params: Any, patterns: Iterable[str], layers: str, field: str) -> Any:
  """The module, or `Layered` over it when a pattern names what only exists with layers apart.

  Args:
    module: the module. params: its (abstract) stacked parameters.
    patterns: regular expressions over whole names.
    layers: `config.layers`. field: of the stage.

  Raises:
    ValueError: such a pattern with layers that are scanned.
  """
  flat = tree_lib.flatten(params)
  apart = None
  for pattern in patterns:
    if any(re.fullmatch(pattern, name) for name in flat):
      continue
    apart = names(flat) if apart is None else apart
    if any(re.fullmatch(pattern, name) for name in apart):
      if layers != "loop":
        raise ValueError(f"{field}: {pattern!r} names single layers, which needs layers='loop'")
      return Layered(module, layout(flat))
  return module


def plain(module: Any, params: Any) -> tuple[Any, Any]:
  """Module and parameters as everything outside training knows them."""
  if not isinstance(module, Layered):
    return module, params
  return module.module, tree_lib.unflatten(stack(tree_lib.flatten(params), module.stacks))
