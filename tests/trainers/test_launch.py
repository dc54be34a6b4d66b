"""How a process finds the others: the environment is faked, JAX's service is not started."""

import jax
import pytest

from bigvlm import cli
from bigvlm.trainers import launch

SLURM = {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "4", "SLURM_PROCID": "1", "SLURM_LOCALID": "0"}
STEP = SLURM | {"SLURM_STEP_NODELIST": "node[1-4]"}


@pytest.fixture
def joined(monkeypatch):
  """The arguments of every call of `jax.distributed.initialize`; no cluster in sight."""
  for name in list(launch.os.environ):
    if name.startswith(("SLURM_", "OMPI_", "TPU_", "MEGASCALE_")):
      monkeypatch.delenv(name)
  calls = []
  monkeypatch.setattr(jax.distributed, "is_initialized", lambda: bool(calls))
  monkeypatch.setattr(jax.distributed, "initialize", lambda *args: calls.append(args))
  launch._look_around.cache_clear()
  yield calls
  launch._look_around.cache_clear()


@pytest.mark.parametrize(
  ("env", "several"),
  [
    ({}, False),
    (STEP, True),
    (STEP | {"SLURM_NTASKS": "1"}, False),
    ({"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "0"}, True),
    ({"OMPI_COMM_WORLD_SIZE": "1"}, False),
    ({"TPU_WORKER_HOSTNAMES": "a.svc,b.svc", "TPU_WORKER_ID": "0"}, True),
    ({"TPU_PROCESS_ADDRESSES": "a:8471,b:8471"}, True),
    ({"TPU_WORKER_HOSTNAMES": "localhost"}, False),
    ({"MEGASCALE_COORDINATOR_ADDRESS": "a.svc"}, True),
  ],
)
def test_the_environment_tells_of_others(joined, monkeypatch, env, several):
  for name, value in env.items():
    monkeypatch.setenv(name, value)
  launch.initialize()
  launch.initialize()  # The trainer calls it again.
  assert joined == ([()] if several else [])  # JAX finds out who they are.


def test_flags_come_before_the_environment(joined, monkeypatch):
  for name, value in STEP.items():
    monkeypatch.setenv(name, value)
  launch.initialize("host:1234", 2, 1)
  assert joined == [("host:1234", 2, 1)]
  with pytest.raises(ValueError, match="--coordinator, --num_processes and --process_id go togeth"):
    launch.initialize("host:1234")


def test_a_slurm_job_without_srun_is_told(joined, monkeypatch, capsys):
  """A batch script's own process is no task: alone, and the others would idle."""
  for name, value in SLURM.items():
    monkeypatch.setenv(name, value)
  launch.initialize()
  launch.initialize()
  assert joined == []
  err = capsys.readouterr().err
  assert "this Slurm job has 4 tasks" in err and "srun" in err and err.count("\n") == 1


def test_processes_that_do_not_come_together_are_one_line(joined, monkeypatch, capsys):
  for name, value in STEP.items():
    monkeypatch.setenv(name, value)

  def fails(*args):
    raise RuntimeError("deadline exceeded\nfrom deep within")

  monkeypatch.setattr(jax.distributed, "initialize", fails)
  assert cli.main(["train", "quickstart:tiny", "--workdir=never"]) == 2
  err = capsys.readouterr().err
  assert err.count("\n") == 1
  for part in ("SLURM_NTASKS=4", "did not come together: deadline exceeded", "--coordinator="):
    assert part in err


@pytest.mark.parametrize("hosts", [1, 2])
def test_a_tpu_vm_asks_its_metadata(joined, monkeypatch, capsys, hosts):
  """Its environment says nothing; where there is no metadata either, it is alone."""
  monkeypatch.setattr(launch.glob, "glob", lambda pattern: [pattern] * ("accel" in pattern))
  monkeypatch.setattr(launch.importlib.util, "find_spec", lambda name: name)
  monkeypatch.setattr(launch, "_cpus_only", lambda: True)
  before = jax.config.jax_platforms
  jax.config.update("jax_platforms", None)
  try:
    launch.initialize()
    assert joined == [()]
    joined.clear()
    launch._look_around.cache_clear()

    def fails(*args):
      raise ValueError("no metadata")

    monkeypatch.setattr(jax.distributed, "initialize", fails)
    monkeypatch.setattr(jax, "process_count", lambda: hosts)
    if hosts == 1:
      launch.initialize()
      assert "one process alone: no metadata" in capsys.readouterr().err
    else:
      with pytest.raises(ValueError, match="this TPU VM says .* no metadata"):
        launch.initialize()
    launch._look_around.cache_clear()
    monkeypatch.setenv("TPU_SKIP_MDS_QUERY", "1")
    launch.initialize()
  finally:
    jax.config.update("jax_platforms", before)
