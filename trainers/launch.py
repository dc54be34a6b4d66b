"""What surrounds a training process: several hosts, the compilation cache, being told to stop."""

import argparse
import functools
import glob
import importlib.util
import os
import signal
import threading

from bigvlm.utils import log

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

  Without arguments the processes are joined where the surroundings say that there are several, see
  `surroundings`; who they are JAX finds out itself. One process is left alone.

  Raises:
    ValueError: some of the three values are given, not all; or the processes do not come together.
  """
  from bigvlm.utils import hostmem, jaxcache

  if _cpus_only():
    hostmem.keep()
  jaxcache.enable()
  given = (coordinator, num_processes, process_id)
  if any(value is not None for value in given):
    if any(value is None for value in given):
      raise ValueError("--coordinator, --num_processes and --process_id go together")
    _join("the command line", coordinator, num_processes, process_id)
  else:
    _look_around()


def _cpus_only() -> bool:
  """Whether JAX will find no accelerator, without asking it: that would start its threads."""
  import jax

  if jax.config.jax_platforms:
    return jax.config.jax_platforms == "cpu"
  devices = ("/dev/nvidia[0-9]*", "/dev/accel*", "/dev/vfio/[0-9]*", "/dev/kfd")
  return not any(map(glob.glob, devices))


@functools.cache
def _look_around() -> None:
  """Joins the processes that the surroundings tell of. Once: a process that is alone stays so."""
  where = surroundings()
  if where:
    _join(where)
  elif _on_tpu():
    _join_vm()


def surroundings() -> str:
  """What says, by the environment, that this process is one of several; "" where nothing does.

  Slurm (`srun`), Open MPI (`mpirun`), TPUs on Kubernetes (hosts of a slice, several slices).
  """
  env = os.environ
  tasks = _count("SLURM_NTASKS")
  if tasks > 1 and "SLURM_STEP_NODELIST" in env:
    return f"Slurm (SLURM_NTASKS={tasks})"
  if tasks > 1 and "SLURM_JOB_ID" in env:
    log.warn(
      f"this Slurm job has {tasks} tasks, but this process is none of them; start it with srun"
    )
  if _count("OMPI_COMM_WORLD_SIZE") > 1:
    return f"Open MPI (OMPI_COMM_WORLD_SIZE={env['OMPI_COMM_WORLD_SIZE']})"
  for name in ("TPU_PROCESS_ADDRESSES", "TPU_WORKER_HOSTNAMES"):
    if "," in env.get(name, ""):
      return f"a TPU slice ({name})"
  if env.get("MEGASCALE_COORDINATOR_ADDRESS"):
    return "several TPU slices (MEGASCALE_COORDINATOR_ADDRESS)"
  return ""


def _count(name: str) -> int:
  """A number in the environment; 1 where there is none."""
  text = os.environ.get(name, "")
  return int(text) if text.isdigit() else 1


def _on_tpu() -> bool:
  """Whether this is a TPU VM whose hosts only the metadata of the machine tell."""
  import jax

  if "TPU_SKIP_MDS_QUERY" in os.environ or os.environ.get("TPU_WORKER_HOSTNAMES"):
    return False  # Others run it, and have said which hosts there are: one.
  if jax.config.jax_platforms and "tpu" not in jax.config.jax_platforms:
    return False
  chips = any(map(glob.glob, ("/dev/accel[0-9]*", "/dev/vfio/[0-9]*")))
  return chips and importlib.util.find_spec("libtpu") is not None


def _join(why: str, *given) -> None:
  """Joins the other processes, if that has not been done; `given` as for `initialize`.

  Raises:
    ValueError: they do not come together; says why there should be several.
  """
  import jax

  if jax.distributed.is_initialized():
    return
  try:
    jax.distributed.initialize(*given)
  except Exception as e:  # Of JAX's service, of the network, of whatever the cluster is asked with.
    raise ValueError(
      f"{why} says that this is one of several processes, but they did not come together: {e}. "
      "Say who they are with --coordinator=HOST:PORT --num_processes=N --process_id=I"
    ) from e


def _join_vm() -> None:
  """On a TPU VM: joins the other hosts, of which there may be none.

  Raises:
    ValueError: there are several, and they do not come together.
  """
  import jax

  try:
    _join("this TPU VM")
  except ValueError as e:
    if jax.process_count() > 1:
      raise
    log.warn(f"one process alone: {e.__cause__}")


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
