"""The train step of a small model with and without `bigvlm.utils.hostmem`, on CPUs.

Usage: python -m benchmarks.host_memory [--rounds=3] [--tiny]

Each round starts a process of either kind, in turn; a line gives the median step of all rounds.
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

from benchmarks import common

_STEPS = 8
# Any variable of this family makes `hostmem.keep` stand back; this one changes nothing else.
_OFF = {"MALLOC_PERTURB_": "0"}


def _serve(tiny: bool) -> None:
  """Prints the seconds of each step, the first left out."""
  from benchmarks import workloads

  with tempfile.TemporaryDirectory() as folder:
    # Small layers and many rows, as in the quickstart: temporaries weigh more than products.
    arg = "kind=paligemma,tiny,batch=" + ("8" if tiny else "512")
    step, _, _ = workloads.train_step(arg, pathlib.Path(folder))
    step()
    taken = []
    for _ in range(_STEPS):
      start = time.perf_counter()
      step()
      taken.append(time.perf_counter() - start)
  print(json.dumps(taken))


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--rounds", type=int, default=3)
  parser.add_argument("--tiny", action="store_true")
  parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
  args = parser.parse_args()
  if args.serve:
    return _serve(args.tiny)
  command = [sys.executable, "-m", "benchmarks.host_memory", "--serve"]
  command += ["--tiny"] if args.tiny else []
  taken = {"kept": [], "returned": []}
  for _ in range(args.rounds):
    for who, extra in (("kept", {}), ("returned", _OFF)):
      done = subprocess.run(
        command, cwd=common.ROOT, env=os.environ | extra, stdout=subprocess.PIPE, check=True
      )
      taken[who] += json.loads(done.stdout.splitlines()[-1])
  for who, seconds in taken.items():
    common.emit("host_memory", who=who, seconds=statistics.median(seconds))


if __name__ == "__main__":
  main()
