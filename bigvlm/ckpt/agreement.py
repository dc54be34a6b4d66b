"""Makes a save fail in all processes or in none."""

import contextlib

import jax

_TIMEOUT_MS = 600_000


class CheckpointError(RuntimeError):
  """A checkpoint could not be saved or restored; one line says which and why."""


class PeerError(CheckpointError):
  """The save failed in another process."""


def one_line(error: BaseException) -> str:
  """The first line of the message; of a long one the two ends (the reason is often last)."""
  lines = [line.strip() for line in str(error).splitlines() if line.strip()]
  text = lines[0] if lines else type(error).__name__
  return text if len(text) <= 320 else f"{text[:150]} ... {text[-150:]}"


class Agreement:
  """What the processes know of each other in one save.

  Orbax waits for all processes before the commit and after it. A process that failed
  leaves a note and joins the next of the two, so nobody waits for the timeout.

  Args:
    name: the same in all processes, and never used before.
  """

  def __init__(self, name: str):
    # JAX has no public handle on its coordination service; orbax uses the same one.
    from jax._src import distributed

    self._client = distributed.global_state.client
    self._name = f"bigvlm/ckpt/{name}"
    self._passed = 0

  def barrier(self, timeout_ms: int = _TIMEOUT_MS) -> None:
    """Waits for all processes; raises PeerError if one of them left a note."""
    self._client.wait_at_barrier(f"{self._name}/{self._passed}", timeout_ms)
    self._passed += 1
    notes = self._client.key_value_dir_get(f"{self._name}/failed/")
    if notes:
      raise PeerError("; ".join(sorted(note for _, note in notes)))

  def fail(self, error: BaseException) -> None:
    """Tells the others, once, why this process cannot go on."""
    process = jax.process_index()
    note = f"process {process}: {one_line(error)}"
    self._client.key_value_set(f"{self._name}/failed/{process}", note)
    with contextlib.suppress(Exception):
      self.barrier()
