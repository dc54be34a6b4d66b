"""The copy of the state that a save in the background works from.

The trainer donates its state to the next step, so what is saved must be copied before
`save` returns. On accelerators that is a transfer to pinned host memory, which JAX
orders before the donation. On the CPU it is a memcpy by several threads into one
buffer that is kept between saves: fresh memory costs more in page faults than the
copy itself.
"""

import math
import os
import threading
from collections.abc import Callable, Mapping
from concurrent import futures

import jax
import numpy as np

from bigvlm.ckpt import digests

_ALIGN = 64  # XLA's CPU buffers; an array with less alignment is not aliased.
_BLOCK = 16 << 20

# name -> (whole array in host memory, the boxes this process owns)
Staged = dict[str, tuple[jax.Array, digests.Pieces]]


def local_shards(x: jax.Array) -> dict[digests.Box, tuple[jax.Array, bool]]:
  """Box -> (data on one device, whether replica 0 is here) of the distinct local shards."""
  out: dict[digests.Box, tuple[jax.Array, bool]] = {}
  for shard in x.addressable_shards:
    box = digests.box_of(shard.index, x.shape)
    data, owned = out.get(box, (shard.data, False))
    out[box] = (data, owned or shard.replica_id == 0)
  return out


def host_pieces(x: jax.Array) -> digests.Pieces:
  """Box -> numpy array of the distinct local shards (no copy on the CPU)."""
  return {box: np.asarray(data) for box, (data, _) in local_shards(x).items()}


class Staging:
  """Host copies of a state, with memory that is reused."""

  def __init__(self):
    self._buffer: np.ndarray | None = None
    self._pool = futures.ThreadPoolExecutor(min(8, os.cpu_count() or 1), "ckpt-copy")
    self._reserving: threading.Thread | None = None

  def reserve(self, arrays: Mapping[str, jax.Array]) -> None:
    """Makes room for such a state in a thread of its own, so that the first save is quick too."""
    if any(not _on_cpu(x) for x in arrays.values()):
      return
    total = sum(_rounded(d.nbytes) for x in arrays.values() for d, _ in local_shards(x).values())
    self._reserving = threading.Thread(target=self._room, args=(total, True), daemon=True)
    self._reserving.start()

  def _room(self, nbytes: int, touch: bool = False) -> np.ndarray:
    if self._buffer is None or self._buffer.nbytes < nbytes + _ALIGN:
      self._buffer = np.empty(nbytes + _ALIGN, np.uint8)
      if touch:
        self._buffer.fill(0)
    start = -self._buffer.ctypes.data % _ALIGN
    return self._buffer[start : start + nbytes]

  def take(self, arrays: Mapping[str, jax.Array]) -> Callable[[], Staged]:
    """Copies; afterwards the caller may donate `arrays`.

    Nothing of `arrays` is referred to afterwards, or XLA would copy the buffers instead
    of reusing them for the next step.

    Returns:
      A function, for the thread that saves, that gives the copies.
    """
    if self._reserving is not None:
      self._reserving.join()
      self._reserving = None
    jax.block_until_ready(arrays)
    on_cpu = {name: x for name, x in arrays.items() if _on_cpu(x)}
    pinned = {
      name: jax.device_put(x, x.sharding.with_memory_kind("pinned_host"))
      for name, x in arrays.items()
      if name not in on_cpu
    }
    shards = {name: local_shards(x) for name, x in on_cpu.items()}
    room = self._room(sum(_rounded(d.nbytes) for s in shards.values() for d, _ in s.values()))
    offset, jobs, copies = 0, [], {}
    for name, found in shards.items():
      for box, (data, _) in found.items():
        target = room[offset : offset + data.nbytes]
        copies.setdefault(name, {})[box] = target.view(data.dtype).reshape(data.shape)
        source = np.asarray(data).reshape(-1).view(np.uint8)  # No copy yet.
        jobs.extend((target[i : i + _BLOCK], source[i : i + _BLOCK]) for i in _blocks(source))
        offset += _rounded(data.nbytes)
    list(self._pool.map(lambda job: np.copyto(*job), jobs))
    owned = {
      name: [box for box, (_, own) in found.items() if own] for name, found in shards.items()
    }
    layout = {name: (x.shape, x.sharding) for name, x in on_cpu.items()}
    names = list(arrays)

    def give() -> Staged:
      out = {}
      for name in names:
        if name in pinned:
          x = pinned[name]
          own = {b: np.asarray(d) for b, (d, mine) in local_shards(x).items() if mine}
        else:
          shape, sharding = layout[name]
          x = _alias(shape, sharding, copies[name])
          own = {box: copies[name][box] for box in owned[name]}
        out[name] = (x, own)
      return out

    return give

  def close(self) -> None:
    """Frees the buffer and the threads."""
    self._pool.shutdown()
    self._buffer = None


def _on_cpu(x: jax.Array) -> bool:
  return next(iter(x.sharding.device_set)).platform == "cpu"


def _rounded(nbytes: int) -> int:
  return math.ceil(nbytes / _ALIGN) * _ALIGN


def _blocks(source: np.ndarray) -> range:
  return range(0, source.nbytes, _BLOCK)


def _alias(shape, sharding, pieces: dict[digests.Box, np.ndarray]) -> jax.Array:
  """A global array over host memory, without a copy."""
  local = [
    jax.device_put(pieces[digests.box_of(index, shape)], device, may_alias=True)
    for device, index in sharding.addressable_devices_indices_map(shape).items()
  ]
  return jax.make_array_from_single_device_arrays(shape, sharding, local)
