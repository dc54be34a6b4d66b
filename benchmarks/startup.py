"""Process start to the end of the first train step of SigLIP B/16, batch 8: cold and warm.

Usage: python -m benchmarks.startup [--dtypes=float32,bfloat16] [--peers] [--repeats=3]
  [--layers=loop] [--tiny]

bigvlm is `python -m bigvlm.trainers.train` itself, reading JPEGs and a tokeniser, until the
line of step 1 stands in `metrics.jsonl`; then it is killed. `cold` has an empty compilation
cache, `warm` the one that the run before filled. A peer (transformers) imports, makes model
and optimiser with random weights, and takes a step on data that is ready. Starts alternate.
"""

import argparse
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

from benchmarks import common, contest

_CACHE_FLAGS = ("JAX_COMPILATION_CACHE_DIR", "JAX_ENABLE_COMPILATION_CACHE")


def environment(cache: pathlib.Path) -> dict[str, str]:
  kept = {key: value for key, value in os.environ.items() if key not in _CACHE_FLAGS}
  return kept | {"BIGVLM_CACHE": str(cache)}


def _trainer(folder: pathlib.Path, cache: pathlib.Path, dtype: str, layers: str, tiny: bool):
  """Seconds of one start of the trainer in a workdir of its own."""
  from benchmarks import workloads

  workdir = pathlib.Path(tempfile.mkdtemp(dir=folder))
  workloads.prepare(workdir, records=16)
  arg = f"kind=siglip,steps=1,dtype={dtype},layers={layers}" + (",tiny" if tiny else "")
  command = [sys.executable, "-m", "bigvlm.trainers.train"]
  command += [f"--config=benchmarks/workloads.py:{arg}", f"--workdir={workdir}"]
  log, line = workdir / "log", workdir / "metrics.jsonl"
  start = time.perf_counter()
  with open(log, "w") as out:
    process = subprocess.Popen(
      command, cwd=common.ROOT, env=environment(cache), stdout=out, stderr=subprocess.STDOUT
    )
  while not (line.exists() and "train/loss" in line.read_text()):
    if process.poll() is not None:
      raise RuntimeError(f"the trainer ended before its first step:\n{log.read_text()[-2000:]}")
    time.sleep(0.01)
  seconds = time.perf_counter() - start
  process.kill()
  process.wait()
  return seconds


def _peer(dtype: str, tiny: bool) -> float:
  """Seconds of one start of transformers."""
  mode = "weights" if dtype == "bfloat16" else "float32"
  flags = [f"--serve={mode}"] + (["--tiny"] if tiny else [])
  start = time.perf_counter()
  command = [sys.executable, "-m", "benchmarks.startup", *flags]
  done = subprocess.Popen(command, cwd=common.ROOT, stdout=subprocess.PIPE, text=True)
  for line in done.stdout:
    if line.startswith("stepped"):
      seconds = time.perf_counter() - start
      done.wait()
      return seconds
  raise RuntimeError(f"the peer ended before its first step, code {done.wait()}")


def _measure(dtype: str, args: argparse.Namespace) -> None:
  taken = {}

  def note(who, start, seconds):
    taken.setdefault((who, start), []).append(seconds)

  peers = contest.available(("transformers",)) if args.peers else []
  with tempfile.TemporaryDirectory() as name:
    folder = pathlib.Path(name)
    for i in range(args.repeats):
      cache = folder / f"cache{i}"
      for start in ("cold", "warm"):
        seconds = _trainer(folder, cache, dtype, args.layers, args.tiny)
        note("bigvlm", start, seconds)
      for peer in peers:
        note(peer, "warm", _peer(dtype, args.tiny))
  for (who, start), seconds in taken.items():
    common.emit(
      "startup",
      who=who,
      start=start,
      dtype=dtype,
      layers=args.layers if who == "bigvlm" else "",
      seconds=statistics.median(seconds),
      best_seconds=min(seconds),
      rounds=len(seconds),
    )


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("--dtypes", default="float32,bfloat16")
  parser.add_argument("--peers", action="store_true", help="transformers too")
  parser.add_argument("--repeats", type=int, default=3)
  parser.add_argument("--layers", default="loop")
  parser.add_argument("--tiny", action="store_true", help="sizes that show only that it runs")
  parser.add_argument("--serve", default="", help="start as the peer, in this mode")
  args = parser.parse_args()
  if args.serve:
    from benchmarks import peers

    step, _ = peers.train_step("transformers", "siglip", "", args.tiny, mode=args.serve)
    step()
    print("stepped", flush=True)
    return
  for dtype in args.dtypes.split(","):
    _measure(dtype, args)


if __name__ == "__main__":
  main()
