"""Runs that are killed, told to stop, moved to another mesh or fed NaN (goals R1, R3, R4, R5, R9).

Reduced counts of `trials`; `make soak` runs them all.
"""

import numpy as np
import pytest

from bigvlm.parallel import mesh as mesh_lib
from bigvlm.trainers import launch, saved
from tests.reliability import trials

ONE, TWO = trials.LAYOUTS[0], trials.LAYOUTS[4]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  return tmp_path_factory.mktemp("trials")


@pytest.fixture(scope="module")
def one(folder):
  """R3 in one process on eight devices."""
  return trials.resume_trials(1, folder / "one", ONE)


@pytest.fixture(scope="module")
def two(folder):
  """R3 in two processes of four devices each."""
  return trials.resume_trials(1, folder / "two", TWO)


@pytest.mark.parametrize("which", ["one", "two"])
def test_a_killed_run_goes_on_bit_for_bit(which, request):
  """R3: parameters, optimiser, average, keys, metrics and example ids."""
  got = request.getfixturevalue(which)
  assert got["equal"] == got["trials"], got


def test_a_killed_run_with_adapters_goes_on_bit_for_bit(folder):
  """R3 with LoRA: its dropout, and parameters that no optimiser knows."""
  got = trials.resume_trials(1, folder / "lora", ONE, arg="lora")
  assert got["equal"] == got["trials"], got
  tensors = trials.straight(folder / "lora" / "straight")["tensors"]
  trained = {name for name in tensors if name.startswith("params/")}
  assert any(name.endswith("lora_b") for name in trained)
  assert all("lora_" in name or "connector" in name for name in trained), trained


def test_every_example_is_seen_in_turn_for_any_number_of_processes(one, two, folder):
  """R9 through the trainer: the global batches of one process and of two are the same."""
  ids = [trials.straight(folder / name / "straight")["ids"] for name in ("one", "two")]
  assert list(ids[0]) == list(range(1, trials.STEPS + 1))
  assert ids[0] == ids[1]
  assert all(len(rows) == 16 for rows in ids[0].values())
  which = sum(source == 0 for rows in ids[0].values() for source, _ in rows)
  assert abs(which - 16 * trials.STEPS * 2 / 3) < 2  # Weights 2 to 1, exactly.


def test_a_restore_that_forgets_something_is_caught(one, folder):
  """R3b: without this the test above might compare nothing."""
  caught = trials.mutation_trials(folder / "one")
  assert sorted(caught) == sorted(trials.FORGET)
  for name, differs in caught.items():
    assert "tensors" in differs, name


def test_sigterm_to_either_process_saves_one_step_in_both(two, folder):
  """R1: exit code 0, the same step, and the resumed run ends like the undisturbed one."""
  got = trials.sigterm_trials(2, folder / "two")
  assert (got["clean"], got["equal"]) == (2, 2), got


def test_a_run_goes_on_on_another_mesh(folder):
  """R4: 8 devices to 4, replicated to FSDP, two processes to one."""
  got = trials.mesh_trials(((0, 1), (0, 2), (0, 3), (4, 0)), folder)
  assert got["ids"] == got["pairs"] == 4
  assert got["worst"] < 1e-5, got


def finite(workdir):
  """Whether every saved checkpoint of a run holds finite numbers only; how many there are."""
  mesh, count = mesh_lib.make(dict(data=1)), 0
  for path in (workdir / "checkpoints" / "low").iterdir():
    if path.name.isdigit():
      groups = ("params", "ema", "opt")
      tensors = saved.read(workdir, "low", mesh, groups, step=int(path.name))
      assert all(np.isfinite(np.asarray(x)).all() for x in tensors.values()), path
      count += 1
  return count


def test_stop_names_the_step_and_the_examples(folder):
  """R5: a NaN in one example's pixels."""
  workdir = folder / "stop"
  got = trials.nan_trial(workdir, "stop", at=[8])
  assert got["codes"] == [launch.EXIT_NONFINITE]
  rows = trials.outcome(workdir)["ids"][8]
  assert "stage low step 8: loss or gradient is not finite" in got["error"]
  assert all(f"{('which', 'caption')[s]}[{i}]" in got["error"] for s, i in rows)
  assert finite(workdir) == 1 and trials.saved(workdir, 6)


def test_skip_goes_on_and_counts(folder):
  workdir = folder / "skip"
  got = trials.nan_trial(workdir, "skip", at=[8])
  assert got["codes"] == [0]
  assert "the step is skipped, 1 so far" in got["said"]
  counts = [line["train/skipped"] for line in trials.outcome(workdir)["metrics"]]
  assert counts == [0, 1, 1, 1, 1, 1]
  assert finite(workdir) == 4


def test_rollback_passes_over_the_window(folder):
  """Back to the checkpoint of step 6; batches 7 and 8 are never used."""
  workdir = folder / "rollback"
  got = trials.nan_trial(workdir, "rollback", at=[8])
  assert got["codes"] == [0]
  end = trials.outcome(workdir)
  assert (end["meta"]["step"], end["meta"]["position"]) == (trials.STEPS, trials.STEPS + 2)
  assert "passes over batches 7 to 8" in got["said"]
  assert finite(workdir) >= 4


def test_rollbacks_do_not_go_on_for_ever(folder):
  """Neither in one launch, nor over relaunches."""
  workdir = folder / "rollbacks"
  for _ in range(2):
    got = trials.nan_trial(workdir, "rollback", at=[8, 10, 15], rollbacks=1)
    assert got["codes"] == [launch.EXIT_ROLLBACKS]
    assert "all 1 rollbacks are used" in got["error"]
  assert finite(workdir) >= 1
