"""What surrounds a training process: several hosts, the compilation cache, being told to stop."""

import argparse
import glob
import os
import signal
import threading

EXIT_BAD_INPUT = 2  # The message says what.
EXIT_NONFINITE = 3  # nonfinite.policy stop, or skip with too many in a row.
EXIT_ROLLBACKS = 4  # nonfinite.policy rollback, and max_rollbacks are used up.

_MEET_SECONDS = 3600  # The longest that compilation may take in one process and not in another.


class Preempted(SystemExit):
  """SIGTERM came; everything is saved. Ends the process with code 0 where nobody catches it."""

  def __init__(self, stage: str, step: int):
    super().__init__(0)
    self.stage, self.step = stage, step


class NonFiniteError(RuntimeError):
  """A loss or gradient was NaN or infinite and the policy says to end, with this exit code."""

  def __init__(self, message: str, exit_code: int):
    super().__init__(message)
    self.exit_code = exit_code


def take_flags(argv: list[str]) -> tuple[argparse.Namespace, list[str]]:
  """Takes `--coordinator=HOST:PORT --num_processes=N --process_id=I` out of the arguments."""
  parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
  parser.add_argument("--coordinator")
  parser.add_argument("--num_processes", type=int)
  parser.add_argument("--process_id", type=int)
  return parser.parse_known_args(argv)


def initialize(coordinator=None, num_processes=None, process_id=None) -> None:
  """Turns the compilation cache on and joins the other processes, before any use of a device.

  Where the devices are CPUs, freed memory stays with the process (see `utils.hostmem`).

  Without arguments the processes are joined where the surroundings say that there are
  several (Slurm, a TPU pod); one process is left alone.

  Raises:
    ValueError: some of the three values are given, not all.
  """
  import jax

  from bigvlm.utils import hostmem, jaxcache

  if _cpus_only():
    hostmem.keep()
  jaxcache.enable()
  given = (coordinator, num_processes, process_id)
  if any(value is not None for value in given):
    if any(value is None for value in given):
      raise ValueError("--coordinator, --num_processes and --process_id go together")
    if not jax.distributed.is_initialized():
      jax.distributed.initialize(coordinator, num_processes, process_id)
  elif _several_hosts() and not jax.distributed.is_initialized():
    jax.distributed.initialize()


def _cpus_only() -> bool:
  """Whether JAX will find no accelerator, without asking it: that would start its threads."""
  import jax

  if jax.config.jax_platforms:
    return jax.config.jax_platforms == "cpu"
  devices = ("/dev/nvidia[0-9]*", "/dev/accel*", "/dev/vfio/[0-9]*", "/dev/kfd")
  return not any(map(glob.glob, devices))


def _several_hosts() -> bool:
  slurm = int(os.environ.get("SLURM_NTASKS", "1") or 1) > 1 and "SLURM_PROCID" in os.environ
  pod = "," in os.environ.get("TPU_WORKER_HOSTNAMES", "")
  return slurm or pod or "MEGASCALE_COORDINATOR_ADDRESS" in os.environ


def barrier(name: str) -> None:
  """Waits for all processes; nothing with one."""
  import jax

  if jax.process_count() > 1:
    from jax.experimental import multihost_utils

    multihost_utils.sync_global_devices(name)


def meet(name: str) -> None:
  """As `barrier`, but without a device: for processes that may come minutes apart.

  Collectives on CPU give up after 30 s when a process is late, and it is late when it has to
  compile: only process 0 writes the compilation cache, and others cannot always read it.
  """
  import jax

  if jax.process_count() > 1:
    # JAX has no public handle on its coordination service; orbax uses the same one.
    from jax._src import distributed

    distributed.global_state.client.wait_at_barrier(f"bigvlm/{name}", 1000 * _MEET_SECONDS)


class Stop:
  """Whether SIGTERM came. With several processes all learn of it at the same call.

  A context manager: one process gets a signal handler, several use JAX's preemption
  service, which agrees on a call that none has made yet. Calls must be made equally
  often by all processes.
  """

  def __init__(self):
    import jax

    self._several = jax.process_count() > 1
    self._calls = 0
    self._told = False
    self._before = None

  def __enter__(self):
    if not self._several and threading.current_thread() is threading.main_thread():
      self._before = signal.signal(signal.SIGTERM, self._note)
    return self

  def _note(self, signum, frame):
    del signum, frame
    self._told = True

  def reached(self) -> bool:
    """True at the step after which the run is to save and end."""
    self._calls += 1
    if self._several and not self._told:
      from jax.experimental import multihost_utils

      self._told = multihost_utils.reached_preemption_sync_point(self._calls)
    return self._told

  def __exit__(self, *exc):
    if self._before is not None:
      signal.signal(signal.SIGTERM, self._before)
