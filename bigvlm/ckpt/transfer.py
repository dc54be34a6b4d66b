"""Reading a checkpoint of others into our parameters, strictly, and writing them back.

What goes in comes out: the names a file used, the dtype of each tensor, tensors that no
forward pass reads and aliases of tied tensors are kept in an `Origin` beside the parameters.
"""

import dataclasses
import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from bigvlm.ckpt import axes as axes_lib
from bigvlm.ckpt import sources
from bigvlm.ckpt.rules import Binding, CkptMap, split_row
from bigvlm.ckpt.sources import Source, Spec
from bigvlm.utils import names as names_lib
from bigvlm.utils import tree

_SHOWN = 5  # Names of a kind in an error.


@dataclasses.dataclass
class Origin:
  """What a file had beside the numbers, for writing it back.

  Attributes:
    names: canonical name -> the file's.
    specs: canonical name -> shape and dtype in the file.
    carried: canonical name -> tensor that no forward pass reads.
    aliases: canonical names of tied tensors that were in the file.
  """

  names: dict[str, str]
  specs: dict[str, Spec]
  carried: dict[str, np.ndarray]
  aliases: tuple[str, ...]


def load(
  ckpt_map: CkptMap,
  source: Source,
  abstract: Any,
  *,
  shardings: Any = None,
  dtype: Any = None,
  excuse: tuple[str, ...] = (),
) -> tuple[dict, Origin]:
  """Reads every parameter from a source, and nothing silently.

  Every device's part is read by itself, layer by layer: the host holds no more than a part of
  one parameter beside the parameters.

  Args:
    ckpt_map: the family's map.
    source: the tensors.
    abstract: tree of the parameters' shapes.
    shardings: tree of `Sharding` like it; None = the default device.
    dtype: of the parameters; None = that of each stored tensor.
    excuse: regexes of stored tensors that may be there without a use (they are dropped).

  Returns:
    The parameters, a tree of dicts, and the `Origin`.

  Raises:
    ValueError: tensors that are missing, left over (names the nearest), of another shape (names
      both) or no floating numbers, an alias that is not its source's equal, or layers of several
      dtypes in one stack.
  """
  shapes = tree.flatten(abstract)
  bindings = ckpt_map.bind(shapes)
  origin = census(ckpt_map, source, bindings, excuse)
  places = {name: None for name in shapes} if shardings is None else tree.flatten(shardings)
  flat = {}
  for binding in bindings:
    layers = {dst: _layer_shape(shapes[dst].shape, binding) for dst in binding.dsts}
    cuts = _cuts(binding, layers)
    _check(source, origin, binding, layers)
    for dst in binding.dsts:
      reader = _reader(source, origin, binding, layers[dst], cuts[dst], dst, dtype)
      flat[dst] = _place(shapes[dst].shape, places[dst], reader)
  return tree.unflatten({name: flat[name] for name in shapes}), origin


def census(
  ckpt_map: CkptMap, source: Source, bindings: list[Binding], excuse: tuple[str, ...] = ()
) -> Origin:
  """Accounts for every tensor of a source: used, tied, carried or excused.

  Raises:
    ValueError: what is missing or left over, with the nearest names.
  """
  specs, names = {}, {}
  for key, spec in source.specs().items():
    canonical = ckpt_map.canonical(key)
    if canonical in names:
      raise ValueError(f"{source.path}: {names[canonical]} and {key} are both {canonical}")
    names[canonical], specs[canonical] = key, spec
  wanted = {split_row(key)[0] for binding in bindings for key in binding.keys}
  # A tied tensor may be in the file under its alias alone.
  for alias, of in ckpt_map.tied:
    if of in wanted and of not in names and alias in names:
      raise ValueError(f"{source.path} has {names[alias]} but not {of}, which it stands for")
  missing = [key for key in sorted(wanted) if key not in names]
  aliases, carried, left = [], {}, []
  tied = dict(ckpt_map.tied)
  for key in names:
    if key in wanted:
      continue
    if key in tied and tied[key] in names:
      _check_alias(source, names, key, tied[key])
      aliases.append(key)
    elif any(re.fullmatch(pattern, key) for pattern in ckpt_map.carry):
      carried[key] = source.read(names[key])
    elif not any(re.fullmatch(pattern, names[key]) for pattern in excuse):
      left.append(names[key])
  if missing or left:
    raise ValueError(_mismatch(source, missing, left))
  return Origin(names, specs, carried, tuple(aliases))


def _mismatch(source: Source, missing: list[str], left: list[str]) -> str:
  line = f"{source.path} does not fit the model:"
  for what, some, others in (("missing", missing, left), ("unexpected", left, missing)):
    if some:
      shown = []
      for name in some[:_SHOWN]:
        near = names_lib.nearest(name, others, 1)
        shown.append(f"{name} (nearest: {near[0]})" if near else name)
      more = f" and {len(some) - _SHOWN} more" if len(some) > _SHOWN else ""
      line += f" {len(some)} tensors {what}: {', '.join(shown)}{more};"
  return line.rstrip(";")


def _check_alias(source: Source, names: Mapping[str, str], alias: str, of: str) -> None:
  if not sources.same(source, names[alias], names[of]):
    raise ValueError(
      f"{source.path}: {names[alias]} is tied to {names[of]} in this model, but their values differ"
    )


def _layer_shape(shape: tuple[int, ...], binding: Binding) -> tuple[int, ...]:
  return tuple(shape[1:]) if binding.stacked else tuple(shape)


def _cuts(binding: Binding, layers: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, int]]:
  """Start and end of every parameter's part along the cut axis of the stored tensor."""
  out, start = {}, 0
  if binding.turns:
    return dict.fromkeys(binding.dsts, (0, 0))
  for dst in binding.dsts:
    part = axes_lib.stored_shape(binding.axes, layers[dst])
    size = part[binding.cut] if part else 0
    out[dst] = (start, start + size)
    start += size
  return out


def _whole(binding: Binding, layers: Mapping[str, tuple[int, ...]]) -> tuple[int, ...]:
  """Shape of the stored tensor (of one row of it)."""
  if binding.turns:
    shape = (len(binding.dsts), *layers[binding.dsts[0]])
    return axes_lib.stored_shape(axes_lib.stacked(binding.axes), shape)
  parts = [list(axes_lib.stored_shape(binding.axes, layers[dst])) for dst in binding.dsts]
  whole = parts[0]
  if len(parts) > 1:
    whole[binding.cut] = sum(part[binding.cut] for part in parts)
  return tuple(whole)


def _check(source: Source, origin: Origin, binding: Binding, layers: Mapping) -> None:
  want = _whole(binding, layers)
  for n, key in enumerate(binding.keys):
    name, row = split_row(key)
    have, kind = origin.specs[name]
    if not jax.numpy.issubdtype(kind, np.floating):
      raise ValueError(
        f"{source.path}: {origin.names[name]} holds {kind}, but {' and '.join(binding.dsts)} of "
        "this model wants floating numbers"
      )
    if row is not None:
      full = (len(binding.keys), *want)
      if have != full:
        _refuse(source, origin.names[name], have, binding.dsts, full)
    elif have != want:
      where = tuple(f"{d}[{n}]" for d in binding.dsts) if binding.stacked else binding.dsts
      _refuse(source, origin.names[name], have, where, want)


def _refuse(source: Source, name: str, have: tuple, dsts: tuple[str, ...], want: tuple) -> None:
  raise ValueError(
    f"{source.path}: {name} has shape {list(have)}, but {' and '.join(dsts)} of this model "
    f"wants {list(want)}"
  )


def _reader(
  source: Source,
  origin: Origin,
  binding: Binding,
  shape: tuple[int, ...],
  cut: tuple[int, int],
  dst: str,
  dtype: Any,
) -> Callable[[tuple[slice, ...]], np.ndarray]:
  """A function from an index of the parameter to its values."""
  stored = {origin.specs[split_row(key)[0]].dtype for key in binding.keys}
  if len(stored) > 1 and dtype is None:
    kinds = ", ".join(sorted(map(str, stored)))
    raise ValueError(
      f"{source.path}: the layers of {dst} are stored as {kinds}; load with dtype= to make them one"
    )
  wanted = np.dtype(stored.pop() if dtype is None else dtype)

  axes = binding.axes
  if binding.turns:
    axes, shape = axes_lib.stacked(axes), (len(binding.dsts), *shape)
    turn = binding.dsts.index(dst)

  def layer(key: str, index: tuple[slice, ...]) -> np.ndarray:
    name, row = split_row(key)
    if binding.turns:
      index = (slice(turn, turn + 1), *index)
    read, got, within = axes_lib.stored_slice(axes, shape, index)
    if len(binding.dsts) > 1 and not binding.turns:
      read = list(read)
      at = read[binding.cut]
      read[binding.cut] = slice(cut[0] + at.start, cut[0] + at.stop)
    if row is not None:
      part = source.read(origin.names[name], (slice(row, row + 1), *read))[0]
    else:
      part = source.read(origin.names[name], tuple(read))
    value = axes_lib.to_param(part, axes, got)[within]
    return value[0] if binding.turns else value

  def read(index: tuple[slice, ...]) -> np.ndarray:
    if not binding.stacked:
      return np.ascontiguousarray(layer(binding.keys[0], index)).astype(wanted, copy=False)
    rows = range(len(binding.keys))[index[0]]
    sizes = [len(range(n)[s]) for n, s in zip(shape[binding.turns :], index[1:], strict=True)]
    out = np.empty((len(rows), *sizes), wanted)
    for n, row in enumerate(rows):
      out[n] = layer(binding.keys[row], index[1:])
    return out

  return read


def _place(shape: tuple[int, ...], sharding: Any, read: Callable) -> jax.Array:
  """An array of which every device's part is read when its turn comes, and once if it is shared."""
  if sharding is None:
    return jax.device_put(read(tuple(slice(0, n) for n in shape)))
  parts, placed = [], {}
  for device, index in sharding.addressable_devices_indices_map(tuple(shape)).items():
    whole = tuple(s.indices(n)[:2] for s, n in zip(index, shape, strict=True))
    if whole not in placed:
      placed[whole] = jax.device_put(read(tuple(slice(*ends) for ends in whole)), device)
      parts.append(placed[whole].block_until_ready())  # The host's copy goes before the next comes.
    else:
      parts.append(jax.device_put(placed[whole], device))
  return jax.make_array_from_single_device_arrays(tuple(shape), sharding, parts)


def export(
  ckpt_map: CkptMap, params: Any, origin: Origin | None = None, *, dtype: Any = None
) -> dict[str, np.ndarray]:
  """The tensors of a checkpoint, under the names of the file they came from.

  Args:
    ckpt_map: the family's map.
    params: tree of parameters.
    origin: what `load` gave; None = canonical names, every tensor in its parameter's dtype and
      tied aliases left out.
    dtype: of the floating tensors; None = that of the file.

  Raises:
    ValueError: as `CkptMap.bind`.
  """
  flat = tree.flatten(params)
  rows: dict[str, dict[int, np.ndarray]] = {}
  out: dict[str, np.ndarray] = {}
  for binding in ckpt_map.bind(flat):
    values = [np.asarray(flat[dst]) for dst in binding.dsts]
    for n, key in enumerate(binding.keys):
      layers = [v[n] if binding.stacked else v for v in values]
      if binding.turns:
        parts = [axes_lib.to_stored(np.stack(layers), axes_lib.stacked(binding.axes))]
      else:
        parts = [axes_lib.to_stored(x, binding.axes) for x in layers]
      whole = parts[0] if len(parts) == 1 else np.concatenate(parts, axis=binding.cut)
      name, row = split_row(key)
      if row is None:
        out[name] = whole
      else:
        rows.setdefault(name, {})[row] = whole
  for name, found in rows.items():
    out[name] = np.stack([found[i] for i in range(len(found))])
  if origin is not None:
    tied = dict(ckpt_map.tied)
    out |= {alias: out[tied[alias]] for alias in origin.aliases} | origin.carried
  named = {}
  for name, x in out.items():
    spec = None if origin is None else origin.specs.get(name)
    kind = dtype if dtype is not None else x.dtype if spec is None else spec.dtype
    floating = jax.numpy.issubdtype(x.dtype, np.floating)
    x = np.ascontiguousarray(x.astype(kind, copy=False) if floating else x)
    named[name if origin is None else origin.names.get(name, name)] = x.reshape(out[name].shape)
  return named
