"""Reliability trials of checkpoints, with a count: few in the tests, all in the soak.

From the root of the checkout: `from tests.ckpt import trials` (the root on sys.path, as
`python -m` puts it). Every function gives a dict of what happened; the caller judges.
Each one starts processes of its own, so it needs no devices here.
"""

import json
import os
import pathlib
import random
import signal
import socket
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
WORKER = pathlib.Path(__file__).with_name("worker.py")
# Processes and mesh (data, fsdp); two processes have four devices each.
LAYOUTS = ((1, (8, 1)), (1, (4, 2)), (1, (2, 4)), (1, (4, 1)), (2, (4, 2)))


def start(workdir, jobs, *, processes: int = 1, devices: int = 8) -> list[subprocess.Popen]:
  """Starts the processes of one worker; each writes WORKDIR/PROCESS.json."""
  workdir = pathlib.Path(workdir)
  workdir.mkdir(parents=True, exist_ok=True)
  with socket.socket() as free:
    free.bind(("localhost", 0))
    port = free.getsockname()[1]
  started = []
  for i in range(processes):
    (workdir / f"{i}.json").unlink(missing_ok=True)
    file = workdir / f"jobs_{i}.json"
    args = {"processes": processes, "process": i, "port": port, "jobs": jobs}
    file.write_text(json.dumps(args | {"devices": devices // processes}))
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    with open(workdir / f"log_{i}.txt", "w") as log:
      started.append(
        subprocess.Popen(
          [sys.executable, str(WORKER), str(file), str(workdir)],
          env=env,
          stdout=log,
          stderr=subprocess.STDOUT,
        )
      )
  return started


def work(workdir, jobs, *, processes: int = 1, devices: int = 8, timeout: float = 300):
  """Runs jobs to their end; [result of each job by process 0, by process 1, ...].

  Raises:
    RuntimeError: a process failed; with the end of its output.
  """
  workdir = pathlib.Path(workdir)
  started = start(workdir, jobs, processes=processes, devices=devices)
  try:
    codes = [p.wait(timeout) for p in started]
  finally:
    for p in started:
      p.kill()
  for i, code in enumerate(codes):
    if code:
      raise RuntimeError(f"process {i}: {code}\n{(workdir / f'log_{i}.txt').read_text()[-3000:]}")
  return [json.loads((workdir / f"{i}.json").read_text()) for i in range(processes)]


def kill_trials(count: int, workdir, *, mib: int = 24, seed: int = 0) -> dict:
  """R2: SIGKILL at random moments of a loop that saves without end, then a restart.

  Returns:
    trials; good: restarts that loaded a complete checkpoint with the content of its
    step; lost: save intervals lost at most; left: temporary folders that a restart
    left; steps: the steps loaded.
  """
  workdir = pathlib.Path(workdir)
  workdir.mkdir(parents=True, exist_ok=True)
  rng = random.Random(seed)
  started, progress = workdir / "started.json", workdir / "progress.txt"
  progress.write_text("")
  out = {"trials": count, "good": 0, "lost": 0, "left": 0, "steps": []}
  job = {"op": "loop", "dir": str(workdir / "ckpt"), "rows": mib * 64, "saves": True}
  job |= {"started": str(started), "progress": str(progress)}
  for trial in range(count + 1):
    started.unlink(missing_ok=True)
    begun = [int(line) for line in progress.read_text().split()]
    progress.write_text("")
    if trial == count:
      work(workdir, [job | {"saves": False}], devices=2)
    else:
      (process,) = start(workdir, [job], devices=2)
      try:
        _wait_for(process, progress, workdir)
        time.sleep(rng.uniform(0, 0.6))
      finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    found = json.loads(started.read_text())
    if trial:
      out["good"] += bool(found["good"])
      out["lost"] = max(out["lost"], begun[-1] - (found["latest"] or 0))
      out["left"] += len(found["left"])
      out["steps"].append(found["latest"])
  return out


def _wait_for(process, progress: pathlib.Path, workdir: pathlib.Path) -> None:
  """Until the third save of the loop has begun, so that the first is complete."""
  deadline = time.time() + 120
  while progress.read_text().count("\n") < 3:
    if process.poll() is not None or time.time() > deadline:
      raise RuntimeError(f"the loop ended: {(workdir / 'log_0.txt').read_text()[-3000:]}")
    time.sleep(0.01)


def full_disk_trials(workdir) -> list[dict]:
  """R2b: the second of three saves cannot write: in one process, in either of two.

  Returns:
    What each process of each run saw (see `worker.full_disk`).
  """
  out = []
  for processes in (1, 2):
    where = pathlib.Path(workdir) / str(processes)
    jobs = [
      {"op": "full_disk", "dir": str(where / f"ckpt_{i}"), "mesh": (2, 2), "process": i}
      for i in range(processes)
    ]
    for results in work(where, jobs, processes=processes, devices=4):
      out.extend(results)
  return out


def reshard_trials(pairs, workdir) -> dict:
  """R4: saves on one layout and restores on another, bit for bit.

  Args:
    pairs: of indices into LAYOUTS; None = all 20.
    workdir: folder for the checkpoints.

  Returns:
    pairs: how many; equal: how many came back bit-equal in every process; digests:
    how many different sets of digests the layouts made of the same values (wanted: 1).
  """
  workdir = pathlib.Path(workdir)
  every = range(len(LAYOUTS))
  pairs = pairs or [(a, b) for a in every for b in every if a != b]
  sets, equal = set(), 0
  for processes in (1, 2):
    jobs = [
      {"op": "save", "dir": str(workdir / f"from_{a}"), "mesh": LAYOUTS[a][1], "step": 7, "seed": 5}
      for a in sorted({a for a, _ in pairs})
      if LAYOUTS[a][0] == processes
    ]
    if jobs:
      for results in work(workdir / f"save_{processes}", jobs, processes=processes):
        sets |= {json.dumps(r["digests"], sort_keys=True) for r in results}
  for processes in (1, 2):
    jobs = [
      {"op": "restore", "dir": str(workdir / f"from_{a}"), "mesh": LAYOUTS[b][1], "seed": 5}
      for a, b in pairs
      if LAYOUTS[b][0] == processes
    ]
    if jobs:
      results = work(workdir / f"restore_{processes}", jobs, processes=processes)
      equal += sum(all(r.get("equal") for r in job) for job in zip(*results, strict=True))
  return {"pairs": len(pairs), "equal": equal, "digests": len(sets)}


def flip_trials(count: int, workdir, *, seed: int = 0, everywhere: bool = False) -> dict:
  """R7: one byte changed at random offsets of the data files of a checkpoint, then a restore.

  Uses the devices of this process (eight, or as many as there are).

  Args:
    count: how many bytes, each put back after its trial.
    workdir: folder for the checkpoint.
    seed: of the choice.
    everywhere: any file of the checkpoint, not the data files only: bytes of orbax's
      own metadata may not matter, so "harmless" (all tensors as saved) is a good end too.

  Returns:
    trials; refused; named: refused with the name of the tensor whose file it is;
    harmless; silent: restored with other values and no error (wanted: 0).
  """
  import jax

  from bigvlm.ckpt import native
  from tests.ckpt import worker

  count_devices = 8 if len(jax.devices()) >= 8 else 1
  mesh = worker.make_mesh((4, 2) if count_devices == 8 else (1, 1))
  arrays = worker.state(3, mesh)
  manager = native.Checkpointer(workdir, verify="full")
  manager.save(3, arrays, {"a": 1})
  manager.wait()
  root = pathlib.Path(workdir) / "3"
  files = sorted(p for p in (root if everywhere else root / "state").rglob("*") if p.is_file())
  if not everywhere:
    tensors = {name.replace("/", ".") for name in arrays}
    files = [f for f in files if f.parent.name in tensors and not f.name.startswith(".")]
  files = [f for f in files if f.stat().st_size]
  rng = random.Random(seed)
  sizes = [f.stat().st_size if not everywhere else 1 for f in files]
  out = dict(trials=count, refused=0, named=0, harmless=0, silent=0)
  for _ in range(count):
    (file,) = rng.choices(files, sizes)
    good = file.read_bytes()
    bad = bytearray(good)
    bad[rng.randrange(len(bad))] ^= rng.randrange(1, 256)
    file.write_bytes(bad)
    try:
      found, meta = manager.restore(worker.like(arrays))
      out["harmless" if worker.equal(found, arrays) and meta == {"a": 1} else "silent"] += 1
    except native.CheckpointError as error:
      out["refused"] += 1
      out["named"] += repr(file.parent.name.replace(".", "/")) in str(error)
    finally:
      file.write_bytes(good)
  manager.close()
  return out
