"""What may be saved, what fits what is wanted, and what a process can verify."""

from typing import Any

import jax
import numpy as np

from bigvlm.ckpt import agreement, digests, staging
from bigvlm.utils import names as names_lib


def specs(manifest: dict) -> dict[str, jax.ShapeDtypeStruct]:
  """Shape and dtype of every tensor, by name."""
  return {
    name: jax.ShapeDtypeStruct(tuple(entry["shape"]), np.dtype(entry["dtype"]))
    for name, entry in manifest["tensors"].items()
  }


def savable(arrays: dict[str, Any]) -> None:
  """Raises TypeError or ValueError, with the name, for what a checkpoint cannot hold."""
  files: dict[str, str] = {}
  for name, x in arrays.items():
    if not isinstance(x, jax.Array):
      raise TypeError(f"state {name!r} is a {type(x).__name__}; only jax.Arrays are saved")
    if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
      raise TypeError(f"state {name!r} is a PRNG key; save jax.random.key_data(key)")
    if not x.size:
      raise ValueError(f"state {name!r} has shape {x.shape}; an empty array cannot be saved")
    other = files.setdefault(name.replace("/", "."), name)
    if other != name:
      raise ValueError(f"states {other!r} and {name!r} would be saved in one file")
  if not arrays:
    raise ValueError("the state has no arrays")


def pieces(x: jax.Array) -> digests.Pieces:
  """Local pieces of `x` to verify: its shards, or all of it if tiles lie across processes."""
  shape = x.shape
  if jax.process_count() > 1 and not x.is_fully_replicated:
    parts = digests.grid(shape, x.dtype.itemsize)
    of_process: dict[int, set[digests.Box]] = {}
    for device, index in x.sharding.devices_indices_map(shape).items():
      of_process.setdefault(device.process_index, set()).add(digests.box_of(index, shape))
    if not all(digests.whole_tiles(shape, parts, boxes) for boxes in of_process.values()):
      everywhere = jax.sharding.NamedSharding(x.sharding.mesh, jax.sharding.PartitionSpec())
      x = jax.jit(lambda a: a, out_shardings=everywhere)(x)
  return staging.host_pieces(x)


def compare(specs: dict, wanted: dict) -> None:
  """Compares what a checkpoint holds with what is wanted, both specs by name.

  Raises:
    CheckpointError: a name, shape or dtype differs; says which, without naming the checkpoint.
  """
  problems = []
  for name, want in wanted.items():
    have = specs.get(name)
    if have is None:
      near = names_lib.nearest(name, [n for n in specs if n not in wanted] or specs)
      hint = f"; did you mean {near[0]!r}?" if near else ""
      problems.append(f"tensor {name!r} is missing{hint}")
    elif tuple(have.shape) != tuple(want.shape):
      problems.append(f"tensor {name!r} has shape {have.shape}, but {want.shape} is wanted")
    elif np.dtype(have.dtype) != np.dtype(want.dtype):
      problems.append(
        f"tensor {name!r} has dtype {have.dtype}, but {np.dtype(want.dtype)} is wanted"
      )
    elif want.sharding is None:
      problems.append(f"tensor {name!r} is wanted without a sharding")
  for name in specs:
    if name not in wanted:
      near = names_lib.nearest(name, wanted)
      hint = f"; the nearest is {near[0]!r}" if near else ""
      problems.append(f"tensor {name!r} is not wanted{hint}")
  if problems:
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    raise agreement.CheckpointError(problems[0] + more)
