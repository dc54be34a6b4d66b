"""The device mesh: named axes `data`, `fsdp`, `tensor`, made from a config.

Batches are cut over `data` and `fsdp` together; parameters over `fsdp` and
`tensor` (see `bigvlm.parallel.sharding`). All axes are Auto: XLA's partitioner
places the collectives, except where an objective says them itself.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from bigvlm.utils import names

AXES = ("data", "fsdp", "tensor")
batch_axes = ("data", "fsdp")


def make(cfg: Mapping[str, int], devices: Sequence[jax.Device] | None = None) -> Mesh:
  """Makes the mesh of a config.

  Args:
    cfg: axis name -> size, axes of `AXES`; one missing is 1; one may be -1 = what is left.
    devices: the devices to use, all of them by default. A mesh smaller than the
      devices takes the first ones (one process only).

  Returns:
    A `Mesh` with the three axes of `AXES`, in that order.

  Raises:
    ValueError: an unknown axis, a size that is neither positive nor -1, two
      sizes of -1, more devices asked for than there are, or a size that does
      not divide them.
  """
  for name in cfg:
    if name not in AXES:
      raise ValueError(names.unknown("mesh axis", name, AXES))
  devices = list(jax.devices() if devices is None else devices)
  sizes = {name: int(cfg.get(name, 1)) for name in AXES}
  said = ", ".join(f"{name}={size}" for name, size in sizes.items())
  for name, size in sizes.items():
    if size < 1 and size != -1:
      raise ValueError(f"mesh.{name}={size}: a size is at least 1, or -1 for what is left")
  free = [name for name, size in sizes.items() if size == -1]
  if len(free) > 1:
    raise ValueError(f"mesh ({said}): only one axis may be -1, not {' and '.join(free)}")
  fixed = math.prod(size for size in sizes.values() if size != -1)
  if fixed > len(devices):
    raise ValueError(
      f"mesh ({said}) needs {fixed} devices, there are {len(devices)}; make an axis smaller"
    )
  if free:
    if len(devices) % fixed:
      raise ValueError(
        f"mesh ({said}): mesh.{free[0]}=-1 wants {len(devices)} devices divided by {fixed}, "
        "which is no whole number; change the other axes"
      )
    sizes[free[0]] = len(devices) // fixed
  count = math.prod(sizes.values())
  _check_processes(sizes, count, devices, said)
  shape = tuple(sizes[name] for name in AXES)
  return jax.make_mesh(
    shape, AXES, devices=devices[:count], axis_types=(AxisType.Auto,) * len(AXES)
  )


def named(mesh: Mesh) -> Mesh:
  """A mesh of the three axes of `AXES` over the devices of any mesh.

  Axes of their names keep their sizes, those of other names are `fsdp`'s; all become Auto.
  """
  place = {name: n for n, name in enumerate(AXES)}
  at = [place.get(name, place["fsdp"]) for name in mesh.axis_names]
  sizes = [1] * len(AXES)
  for n, size in zip(at, mesh.devices.shape, strict=True):
    sizes[n] *= size
  devices = mesh.devices.transpose(np.argsort(at, kind="stable")).reshape(sizes)
  return Mesh(devices, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def _check_processes(sizes: dict[str, int], count: int, devices: list, said: str) -> None:
  """Every process must have devices, and hold whole rows of the batch of its own."""
  processes = len({d.process_index for d in devices})
  if processes == 1:
    return
  if count != len(devices):
    raise ValueError(
      f"mesh ({said}) uses {count} of {len(devices)} devices; with {processes} processes "
      "it must use all of them (say data=-1)"
    )
  local = len(devices) // processes
  if local % sizes["tensor"]:
    raise ValueError(
      f"mesh.tensor={sizes['tensor']} does not divide the {local} devices of a process"
    )


def batch_size(mesh: Mesh) -> int:
  """Into how many parts a batch is cut."""
  return math.prod(mesh.shape[axis] for axis in batch_axes)


def batch_sharding(mesh: Mesh) -> NamedSharding:
  """Sharding of an array whose first axis is the batch."""
  return NamedSharding(mesh, PartitionSpec(batch_axes))


def replicated(mesh: Mesh) -> NamedSharding:
  """Sharding of an array that every device holds whole."""
  return NamedSharding(mesh, PartitionSpec())


def check_batch(mesh: Mesh, n: int, field: str) -> None:
  """Raises ValueError when `n` rows, set by config `field`, cannot be cut over the mesh."""
  parts = batch_size(mesh)
  if n < 1 or n % parts:
    data, fsdp = (mesh.shape[axis] for axis in batch_axes)
    below, above = n // parts * parts, (n // parts + 1) * parts
    sizes = f"{below} or {above}" if below > 0 else f"{above}"
    raise ValueError(
      f"{field}={n} is not divisible by the {parts} parts of the batch (mesh data={data} x "
      f"fsdp={fsdp}); use {sizes}"
    )


def put_global(arrays: Any, mesh: Mesh) -> Any:
  """Makes global arrays of what each process holds.

  Args:
    arrays: pytree of numpy arrays [B / process_count, ...], this process's rows.
    mesh: the mesh.

  Returns:
    The same tree of `jax.Array`s [B, ...], cut over the batch axes.
  """
  sharding = batch_sharding(mesh)
  return jax.tree.map(
    lambda x: jax.make_array_from_process_local_data(sharding, np.asarray(x)), arrays
  )
