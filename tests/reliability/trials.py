"""Reliability trials of whole runs, with a count: few in the tests, all in the soak.

Every function gives a dict of what happened; the caller judges. Each starts processes of
its own, so it needs no devices here. Runs are those of `toy.py`, 24 steps of stage `low`
with a checkpoint every 6.
"""

import json
import os
import pathlib
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence

ROOT = pathlib.Path(__file__).resolve().parents[2]
HERE = pathlib.Path(__file__).resolve().parent
STAGE, STEPS, EVERY = "low", 24, 6
FORGET = ("rng", "data", "count", "step")
# What a run is laid out as: processes, devices of each, (data, fsdp).
LAYOUTS = (
  (1, 8, (8, 1)),
  (1, 8, (4, 2)),
  (1, 8, (2, 4)),
  (1, 4, (4, 1)),
  (2, 4, (8, 1)),
)


class Job:
  """The processes of one run in one workdir."""

  def __init__(
    self,
    workdir: pathlib.Path,
    *,
    layout: tuple = LAYOUTS[0],
    arg: str = "",
    flags: Sequence[str] = (),
    **spec,
  ):
    self.workdir, self.log = workdir, workdir / "log"
    self.log.mkdir(parents=True, exist_ok=True)
    self.processes, devices, (data, fsdp) = layout
    with socket.socket() as free:
      free.bind(("localhost", 0))
      port = free.getsockname()[1]
    mesh = (f"--config.mesh.data={data}", f"--config.mesh.fsdp={fsdp}")
    path = self.log / "spec.json"
    config = str(HERE / "toy.py") + (f":{arg}" if arg else "")
    spec = dict(spec, config=config, workdir=str(workdir), log=str(self.log), port=port)
    path.write_text(json.dumps(dict(spec, flags=[*mesh, *flags], processes=self.processes)))
    flag = f"--xla_force_host_platform_device_count={devices} --xla_backend_optimization_level=0"
    flag += " --xla_cpu_use_fusion_emitters=false"
    env = os.environ | dict(PYTHONPATH=str(ROOT), XLA_FLAGS=flag, JAX_PLATFORMS="cpu")
    self.popen = []
    for i in range(self.processes):
      with open(self.log / f"out-{i}.txt", "a") as out:
        command = [sys.executable, str(HERE / "worker.py"), str(path), str(i)]
        self.popen.append(subprocess.Popen(command, env=env, stdout=out, stderr=out))

  def until(self, condition, timeout: float = 600) -> None:
    """Waits for `condition()`; raises when a process ends before, with its last words."""
    deadline = time.monotonic() + timeout
    while not condition():
      if time.monotonic() > deadline or any(p.poll() is not None for p in self.popen):
        self.kill()
        raise RuntimeError(f"it did not come to that: {self.said()}")
      time.sleep(0.005)

  def kill(self) -> None:
    for p in self.popen:
      p.send_signal(signal.SIGKILL)
    for p in self.popen:
      p.wait()

  def wait(self, timeout: float = 600) -> list[int]:
    """Exit codes of the processes."""
    try:
      return [p.wait(timeout) for p in self.popen]
    finally:
      for p in self.popen:
        p.kill()

  def done(self) -> "Job":
    """Waits for the end; raises with the last words unless all exit codes are 0."""
    codes = self.wait()
    if any(codes):
      raise RuntimeError(f"exit codes {codes}: {self.said()}")
    return self

  def said(self) -> str:
    files = sorted(self.log.glob("out-*.txt"))
    return "\n".join(f"{f.name}: {f.read_text()[-3000:]}" for f in files)


def position(workdir: pathlib.Path) -> int:
  """Batches that process 0 has given to steps."""
  path = workdir / "log" / "batches-0.jsonl"
  lines = path.read_text().split("\n")[:-1] if path.exists() else []
  return json.loads(lines[-1])[0] if lines else 0


def saved(workdir: pathlib.Path, step: int) -> bool:
  return (workdir / "checkpoints" / STAGE / str(step)).is_dir()


def outcome(workdir: pathlib.Path) -> dict:
  """All that two equal runs agree on: digests of the last state, place in the data, metrics, ids.

  `ids` is {position: sorted ids of the global batch}, or "differs" where a step got other
  examples after a kill than before.
  """
  steps = [int(p.name) for p in (workdir / "checkpoints" / STAGE).iterdir() if p.name.isdigit()]
  path = workdir / "checkpoints" / STAGE / str(max(steps)) / "manifest" / "manifest.json"
  manifest = json.loads(path.read_text())
  meta = {k: manifest["meta"][k] for k in ("stage", "step", "data", "position")}
  lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
  lines = [{k: v for k, v in line.items() if not k.startswith("time/")} for line in lines]
  ids: dict[int, list] = {}
  for file in sorted((workdir / "log").glob("batches-*.jsonl")):
    mine: dict[int, list] = {}
    for line in file.read_text().split("\n")[:-1]:
      at, rows = json.loads(line)
      if mine.setdefault(at, rows) != rows:
        mine[at] = [["differs"]]
    for at, rows in mine.items():
      ids[at] = sorted(ids.get(at, []) + rows)
  return dict(tensors=manifest["tensors"], meta=meta, metrics=lines, ids=ids)


def straight(workdir: pathlib.Path, layout: tuple = LAYOUTS[0], arg: str = "") -> dict:
  """The outcome of a run that nobody disturbs; made once in a folder."""
  if not (workdir / "summary.json").exists():
    Job(workdir, layout=layout, arg=arg).done()
  return outcome(workdir)


def interrupted(
  workdir: pathlib.Path, layout: tuple, at: int, delay: float = 0.0, arg: str = ""
) -> int:
  """Runs to batch `at` and `delay` seconds more, then SIGKILL to all; gives the batch reached."""
  job = Job(workdir, layout=layout, arg=arg, sleep=0.1)
  job.until(lambda: position(workdir) >= at and saved(workdir, EVERY))
  time.sleep(delay)
  job.kill()
  return position(workdir)


def resume_trials(
  count: int, workdir: pathlib.Path, layout: tuple, seed: int = 0, arg: str = ""
) -> dict:
  """R3: killed by SIGKILL at any step and relaunched, against left alone."""
  rng, want = random.Random(seed), straight(workdir / "straight", layout, arg)
  out = dict(trials=count, equal=0, killed_at=[], differ=[])
  for trial in range(count):
    where = workdir / f"killed-{trial}"
    at = rng.randint(EVERY + 1, STEPS - 8)
    out["killed_at"].append(interrupted(where, layout, at, rng.uniform(0, 0.05), arg))
    if trial == 0:
      shutil.copytree(where, workdir / "half")
    Job(where, layout=layout, arg=arg).done()
    got = outcome(where)
    differ = [key for key in want if got[key] != want[key]]
    out["equal"] += not differ
    out["differ"] += differ
  return out


def mutation_trials(workdir: pathlib.Path, what: Sequence[str] = FORGET) -> dict:
  """R3b: a restore that forgets something must not pass for a resume. Needs `resume_trials`."""
  want, out = straight(workdir / "straight"), {}
  for name in what:
    where = workdir / f"forgot-{name}"
    shutil.copytree(workdir / "half", where)
    Job(where, forget=name).done()
    got = outcome(where)
    out[name] = [key for key in ("tensors", "metrics", "ids") if got[key] != want[key]]
  return out


def sigterm_trials(count: int, workdir: pathlib.Path, seed: int = 0) -> dict:
  """R1: SIGTERM to either of two processes, 50 ms a step; then relaunched.

  Returns:
    trials; clean: both exited 0 and left at one step that was saved; seconds: the longest
    time from the signal to the last exit; equal: final digests are those of an undisturbed run.
  """
  rng, layout = random.Random(seed), LAYOUTS[4]
  want = straight(workdir / "straight", layout)
  out = dict(trials=count, clean=0, equal=0, seconds=0.0, steps=[])
  for trial in range(count):
    where = workdir / f"told-{trial}"
    job = Job(where, layout=layout, sleep=0.05)
    at = rng.randint(2, STEPS - 8)
    job.until(lambda where=where, at=at: position(where) >= at)
    began = time.monotonic()
    job.popen[trial % 2].send_signal(signal.SIGTERM)
    if trial % 4 >= 2:  # R1b: a second one, during the save.
      time.sleep(rng.uniform(0.05, 0.3))
      job.popen[trial % 2].send_signal(signal.SIGTERM)
    codes = job.wait()
    out["seconds"] = max(out["seconds"], time.monotonic() - began)
    left = [json.loads((where / "log" / f"left-{i}.json").read_text()) for i in (0, 1)]
    step = left[0] and left[0]["step"]
    out["steps"].append(step)
    out["clean"] += codes == [0, 0] and step and left[0] == left[1] and saved(where, step)
    Job(where, layout=layout).done()
    got = outcome(where)
    out["equal"] += all(got[key] == want[key] for key in want)
  return out


def mesh_trials(pairs: Sequence[tuple[int, int]], workdir: pathlib.Path) -> dict:
  """R4: the second half of a run on another layout, without dropout (its masks go by row).

  Args:
    pairs: (saved on, continued on), indices of LAYOUTS.
    workdir: where.

  Returns:
    pairs; worst: largest relative difference of a loss after the change; ids: in how many
    pairs the global batches were the same examples.
  """
  out = dict(pairs=len(pairs), worst=0.0, ids=0)
  for a, b in pairs:
    want = straight(workdir / f"on-{a}", LAYOUTS[a], "dropout=0.0")
    where = workdir / f"from-{a}-on-{b}"
    shutil.copytree(workdir / f"on-{a}", where)
    for step in range(STEPS // 2 + EVERY, STEPS + 1, EVERY):
      shutil.rmtree(where / "checkpoints" / STAGE / str(step))
    shutil.rmtree(where / "results")
    shutil.rmtree(where / "log")
    Job(where, layout=LAYOUTS[b], arg="dropout=0.0").done()
    got = outcome(where)
    for new, old in zip(got["metrics"], want["metrics"], strict=True):
      difference = abs(new["train/loss"] / old["train/loss"] - 1)
      out["worst"] = max(out["worst"], difference)
    half = {at: ids for at, ids in want["ids"].items() if at > STEPS // 2}
    out["ids"] += got["ids"] == half
  return out


def nan_trial(workdir: pathlib.Path, policy: str, at: Sequence[int], rollbacks: int = 3) -> dict:
  """R5: pixels of the batches at positions `at` get a NaN.

  Returns:
    codes; said: what the process wrote; error: the message of the exception, if it ended by one.
  """
  flags = (
    f"--config.nonfinite.policy={policy}",
    f"--config.nonfinite.max_rollbacks={rollbacks}",
  )
  job = Job(workdir, flags=flags, nan=list(at))
  codes = job.wait()
  path = workdir / "log" / "error-0.txt"
  return dict(codes=codes, said=job.said(), error=path.read_text() if path.exists() else "")
