"""The reliability trials at full counts: `python -m benchmarks.soak [--only R1,R3] [--share 1.0]`.

One JSON line a goal, and a table in RESULTS.md. The tests run the same functions with
reduced counts.
"""

import argparse
import pathlib
import sys
import tempfile
import time
from collections.abc import Callable

from benchmarks import common
from bigvlm.trainers import launch
from tests.ckpt import trials as ckpt
from tests.reliability import trials as runs

Row = tuple[str, bool, dict]  # What was counted in words, whether it is as promised, the counts.


def r1(folder: pathlib.Path, n: int) -> Row:
  got = runs.sigterm_trials(n, folder)
  good = got["clean"] == got["equal"] == n and got["seconds"] <= 5
  words = f"{got['clean']} clean, {got['equal']} equal after resume, at most {got['seconds']:.1f} s"
  return f"{n} SIGTERMs to one of two processes: {words}", good, got


def r2(folder: pathlib.Path, n: int) -> Row:
  got = ckpt.kill_trials(n, folder)
  good = got["good"] == n and got["lost"] <= 2 and not got["left"]
  words = f"{got['good']} good restarts, at most {got['lost']} saves lost, {got['left']} left over"
  return f"{n} SIGKILLs in a save loop: {words}", good, got


def r3(folder: pathlib.Path, n: int) -> Row:
  counts = {}
  for name, layout in (("1x8", runs.LAYOUTS[0]), ("2x4", runs.LAYOUTS[4])):
    counts[name] = runs.resume_trials(n, folder / name, layout, seed=len(counts))
  good = all(got["equal"] == n for got in counts.values())
  words = ", ".join(f"{got['equal']}/{n} on {name}" for name, got in counts.items())
  return f"{n} runs killed and resumed, bitwise equal: {words}", good, counts


def r3b(folder: pathlib.Path, n: int) -> Row:
  runs.resume_trials(1, folder, runs.LAYOUTS[0])
  got = runs.mutation_trials(folder)
  caught = sum("tensors" in differs for differs in got.values())
  return f"restores that forget {', '.join(got)}: {caught}/{len(got)} caught", caught == n, got


def r4(folder: pathlib.Path, n: int) -> Row:
  every = range(len(runs.LAYOUTS))
  pairs = [(a, b) for a in every for b in every if a != b][:n]
  bits = ckpt.reshard_trials(None if n >= 20 else pairs, folder / "bits")
  got = runs.mesh_trials(pairs, folder / "runs")
  good = bits["equal"] == bits["pairs"] and got["ids"] == len(pairs) and got["worst"] < 1e-5
  words = (
    f"{bits['equal']} bit-equal, losses within {got['worst']:.1e}, {got['ids']} with equal ids"
  )
  return f"{len(pairs)} changes of mesh or processes: {words}", good, dict(bits=bits, runs=got)


def r5(folder: pathlib.Path, n: int) -> Row:
  wanted = dict(stop=launch.EXIT_NONFINITE, skip=0, rollback=0)
  codes = {}
  for trial in range(n):
    for policy, code in wanted.items():
      where = folder / f"{policy}-{trial}"
      got = runs.nan_trial(where, policy, at=[2 + trial * 3 % 20])["codes"]
      codes[f"{policy}-{trial}"] = got == [code]
  many = runs.nan_trial(folder / "many", "rollback", at=range(7, 24, 2), rollbacks=2)["codes"]
  codes["many"] = many == [launch.EXIT_ROLLBACKS]
  good = all(codes.values())
  return f"{len(codes)} runs with NaN: {sum(codes.values())} ended as they should", good, codes


def r7(folder: pathlib.Path, n: int) -> Row:
  got = ckpt.flip_trials(n, folder)
  good = got["refused"] == got["named"] == n
  words = f"{got['refused']} refused, {got['named']} with the tensor named, {got['silent']} silent"
  return f"{n} flipped bytes: {words}", good, got


GOALS: dict[str, tuple[Callable, int]] = {
  "R1": (r1, 20),
  "R2": (r2, 100),
  "R3": (r3, 10),
  "R3b": (r3b, 4),
  "R4": (r4, 20),
  "R5": (r5, 5),
  "R7": (r7, 200),
}


def main(argv: list[str] | None = None) -> int:
  """Runs the goals; returns 0 if all hold."""
  parser = argparse.ArgumentParser(prog="python -m benchmarks.soak", description=__doc__)
  parser.add_argument("--only", default=",".join(GOALS), help="goals, separated by commas")
  parser.add_argument("--share", type=float, default=1.0, help="part of the full counts")
  args = parser.parse_args(argv)
  rows = []
  for name in args.only.split(","):
    if name not in GOALS:
      parser.error(f"no goal {name!r}; goals: {', '.join(GOALS)}")
    goal, full = GOALS[name]
    count = full if name == "R3b" else max(1, round(full * args.share))
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="soak-") as folder:
      words, good, counts = goal(pathlib.Path(folder), count)
    took = time.monotonic() - began
    common.emit(f"soak/{name}", holds=good, seconds=took, result=words, counts=counts)
    rows.append(f"| {name} | {words} | {'yes' if good else '**no**'} | {took:.0f} |")
    table = [
      "## Reliability",
      "",
      "| goal | what happened | holds | seconds |",
      "| --- | --- | --- | --- |",
    ]
    footer = "`make soak`; CPU, two processes where it says so. Goals: docs on checkpoints."
    common.write_section("soak", "\n".join([*table, *rows, "", footer]))
  return 0 if all("**no**" not in row for row in rows) else 1


if __name__ == "__main__":
  sys.exit(main())
