"""Processes of one run that fail together: an error in one is told and ends the others."""

import itertools
import os
import threading
from types import TracebackType

from bigvlm.utils import log

_LOOK = 1.0  # Seconds between looks.
_GRACE = 5.0  # What a process has to fail by itself, as all do where the input is bad.
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

  def _watch(self) -> None:
    while not self._here.wait(_LOOK):
      try:
        said = _state().client.key_value_try_get(self._key)
      except Exception:  # There is no such key: nobody has failed.
        continue
      if self._here.wait(_GRACE):
        return
      log.error(f"{said}; this process ends with it")
      _state().shutdown()  # Meets the one that failed, which leaves without complaint.
      os._exit(1)  # The main thread waits where no exception can reach it.


def _state():
  # JAX has no public handle on its coordination service; orbax uses the same one.
  from jax._src import distributed

  return distributed.global_state
