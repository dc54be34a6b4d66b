"""Processes of one run that fail together: an error in one is told and ends the others."""

import atexit
import itertools
import os
import sys
import threading
import time
from types import TracebackType

from bigvlm.utils import log

_LOOK = 1.0  # Seconds between looks.
_GRACE = 5.0  # What a process has to fail by itself, as all do where the input is bad.
_TELLING = 20.0  # What all have to hear of it.
_LINGER = 1.0  # What the coordinator outlives the others.
_runs = itertools.count()


class Together:
  """Ends this process, with a line that says why, when another one has left by an error.

  Without it the others would wait in a collective for the one that is gone: half a minute on CPUs,
  and then an error of the transport; elsewhere until the heartbeats stop. A context manager around
  what all processes of a run do, entered equally often by all; nothing with one process.
  """

  def __init__(self):
    import jax

    self._here = threading.Event()
    self._several = jax.process_count() > 1
    self._key = f"bigvlm/failed/{next(_runs)}"

  def __enter__(self):
    if self._several:
      threading.Thread(target=self._watch, daemon=True).start()
    return self

  def __exit__(
    self, kind: type | None, error: BaseException | None, trace: TracebackType | None
  ) -> None:
    self._here.set()
    # SIGTERM is no error: all have agreed on it.
    if self._several and isinstance(error, Exception):
      import jax

      said = f"process {jax.process_index()} failed: {error or kind.__name__}"
      _state().client.key_value_set(self._key, said, allow_overwrite=True)
      atexit.register(_end, self._key, getattr(error, "exit_code", 1))

  def _watch(self) -> None:
    while not self._here.wait(_LOOK):
      said = _get(self._key)
      if said is None:
        continue
      if self._here.wait(_GRACE):
        return
      log.error(f"{said}; this process ends with it")
      _end(self._key, 1)  # The main thread waits where no exception can reach it.


def _end(key: str, code: int) -> None:
  """Ends this process once all have heard: who leaves before is missed in a collective, and whoever
  loses a peer there, or the coordinator, is aborted. JAX's own meeting at the end is left out."""
  import jax

  me, left = jax.process_index(), set(range(jax.process_count()))
  _state().client.key_value_set(f"{key}/{me}", "heard", allow_overwrite=True)
  until = time.monotonic() + _TELLING
  while left and time.monotonic() < until:
    left = {i for i in left if _get(f"{key}/{i}") is None}
    time.sleep(0.05)
  if me == 0:
    time.sleep(_LINGER)
  sys.stdout.flush()
  sys.stderr.flush()
  os._exit(code)


def _get(key: str) -> str | None:
  try:
    return _state().client.key_value_try_get(key)
  except Exception:  # There is no such key.
    return None


def _state():
  # JAX has no public handle on its coordination service; orbax uses the same one.
  from jax._src import distributed

  return distributed.global_state
