"""Batches on their way from the loader to the devices, each with the place it came from."""

import collections
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np

from bigvlm.parallel import mesh as mesh_lib

DEPTH = 2  # Batches on the devices ahead of the step.


class Fed(NamedTuple):
  """One batch: `arrays` are global; `ids` [B / processes, 2] are this process's rows.

  `position` counts the loader's batches up to and including this one, `data` is the
  loader's state after it: what a checkpoint taken after this batch's step holds.
  """

  arrays: dict[str, jax.Array]
  ids: np.ndarray
  position: int
  data: Any


class Feed:
  """Iterator over a loader that keeps `DEPTH` batches on the devices ahead of the step."""

  def __init__(
    self,
    loader: Iterator,
    mesh: jax.sharding.Mesh,
    *,
    position: int = 0,
    windows: tuple[tuple[int, int], ...] = (),
    vote: Callable[[], int] = lambda: 0,
  ):
    """
    Args:
      loader: iterator of dicts of local arrays with `.state()`, already restored.
      mesh: where batches go.
      position: batches that the loader gave before.
      windows: (begin, end) positions that rollbacks decided to pass over.
      vote: the wish of this process, sent along with each batch (see `trainers.step`).
    """
    self._loader, self._mesh = loader, mesh
    self._position, self._windows, self._vote = position, windows, vote
    self._ready = collections.deque()

  def _next(self) -> Fed:
    while True:
      arrays = dict(next(self._loader))
      self._position += 1
      if not any(begin < self._position <= end for begin, end in self._windows):
        break
    ids = arrays.pop("ids")
    arrays["vote"] = np.full(len(ids), self._vote(), np.int32)
    data = self._loader.state()
    return Fed(mesh_lib.put_global(arrays, self._mesh), ids, self._position, data)

  def __iter__(self):
    return self

  def __next__(self) -> Fed:
    while len(self._ready) < DEPTH:
      self._ready.append(self._next())
    return self._ready.popleft()

  def close(self) -> None:
    """Ends the loader's threads and processes."""
    self._loader.close()


def describe(ids: np.ndarray, sources: list[str], limit: int = 8) -> str:
  """Example ids in words: `digits[17], digits[4]`; ids [B, 2] = (source number, record)."""
  words = [f"{sources[s] if 0 <= s < len(sources) else s}[{i}]" for s, i in ids.tolist()]
  more = f" and {len(words) - limit} more" if len(words) > limit else ""
  return ", ".join(words[:limit]) + more
