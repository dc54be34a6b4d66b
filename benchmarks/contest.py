"""Several competitors, a process each, that take turns: a machine that drifts is fair to all.

A competitor answers, line by line on its standard input: `step` (takes one step; `step NAME` where
it has several), `limit DTYPE` (measures the machine's matrix products), `facts`. Replies are JSON
lines on the standard output that the process was started with; whatever libraries print goes to
stderr.
"""

import importlib.metadata
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

from benchmarks import common

# What each peer needs to be imported, and how it is had.
_BENCH = "pip install -e .[bench]"
_PEERS = dict(
  transformers=(("torch", "transformers"), _BENCH),
  open_clip=(("torch", "open_clip"), _BENCH),
  timm=(("torch", "timm"), _BENCH),
  big_vision=(("big_vision",), "a checkout of google-research/big_vision on PYTHONPATH"),
)
_PACKAGES = dict(transformers="transformers", open_clip="open_clip_torch", timm="timm")


def available(peers: tuple[str, ...]) -> list[str]:
  """The peers that can be imported; a line to stderr for the others."""
  found = [p for p in peers if all(map(importlib.util.find_spec, _PEERS[p][0]))]
  for peer in peers:
    if peer not in found:
      print(f"{peer} is not installed and is left out ({_PEERS[peer][1]})", file=sys.stderr)
  return found


def versions(*peers: str) -> dict[str, str]:
  """Versions of torch and of peers."""
  names = {"torch": "torch", **{p: _PACKAGES[p] for p in peers}}
  return {name: importlib.metadata.version(package) for name, package in names.items()}


Steps = Callable[[], Any] | Mapping[str, Callable[[], Any]]


def serve(make: Callable[[], tuple[Steps, Mapping]], tiny: bool = False) -> None:
  """The competitor's side: makes its steps, takes each once, then answers until input ends."""
  replies = os.fdopen(os.dup(1), "w")
  os.dup2(2, 1)

  def reply(**fields):
    replies.write(json.dumps(fields) + "\n")
    replies.flush()

  start = time.perf_counter()
  steps, facts = make()
  if not isinstance(steps, Mapping):
    steps = {"": steps}
  for step in steps.values():
    step()
  reply(ready=time.perf_counter() - start)
  for line in sys.stdin:
    word, *rest = line.split()
    if word == "step":
      step = steps["".join(rest)]
      start = time.perf_counter()
      step()
      reply(seconds=time.perf_counter() - start)
    elif word == "limit":
      reply(flops=common.gemm_limit(*rest, tiny))
    else:
      reply(peak_rss=common.peak_rss(), **facts)


class Competitor:
  """The other side: one process that runs a benchmark module with `--serve`."""

  def __init__(self, module: str, *args: str):
    command = [sys.executable, "-m", module, *args]
    pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    self._process = subprocess.Popen(command, cwd=common.ROOT, **pipes)
    self._read()

  def ask(self, question: str) -> dict[str, Any]:
    """Sends a line and waits for the reply.

    Raises:
      RuntimeError: the process ended instead.
    """
    self._process.stdin.write(question + "\n")
    self._process.stdin.flush()
    return self._read()

  def _read(self) -> dict[str, Any]:
    line = self._process.stdout.readline()
    if not line:
      raise RuntimeError(f"a competitor ended with code {self._process.wait()}")
    return json.loads(line)

  def close(self) -> None:
    self._process.stdin.close()
    self._process.wait()


def run(
  name: str, module: str, who: list[str], args: list[str], dtype: str, *, rounds: int, **fields
) -> None:
  """One contest; emits a line a competitor.

  Every round asks all for one step, in alternating order, and bigvlm for the limit of
  matrix products. A peer that fails is emitted with `error` and does not stop the others.

  Args:
    name: of the measurement. module: benchmark module whose `--serve=WHO` competes.
    who: competitors, `bigvlm` first. args: for all of them.
    dtype: of the limit.
    rounds: steps of each that count, after one that does not.
    **fields: go into the lines.
  """
  fields, limit = dict(fields, dtype=dtype), 0.0
  players, times = {}, {}
  try:
    enter(players, name, module, who, args, **fields)
    times = {one: [] for one in players}
    for i in range(rounds):
      limit = max(limit, players["bigvlm"].ask(f"limit {dtype}")["flops"])
      for one in list(players)[:: -1 if i % 2 else 1]:
        times[one].append(players[one].ask("step")["seconds"])
    facts = {one: player.ask("facts") for one, player in players.items()}
  finally:
    for player in players.values():
      player.close()
  for one, taken in times.items():
    _emit(name, one, taken, facts[one], facts["bigvlm"], limit, fields)


def enter(players: dict[str, Competitor], name: str, module: str, who, args, **fields) -> None:
  """Starts competitors into `players`; the arguments are those of `run`.

  A peer that fails is emitted with `error`; without bigvlm there is no contest.
  """
  for one in who:
    try:
      players[one] = Competitor(module, f"--serve={one}", *args)
    except RuntimeError as e:
      if one == "bigvlm":
        raise
      common.emit(name, who=one, error=str(e), **fields)


def _emit(name, who, taken, facts, ours, limit, fields) -> None:
  seconds, operations = statistics.median(taken), ours["tflop"] * 1e12
  common.emit(
    name,
    who=who,
    **fields,
    mode=facts.get("mode", ""),
    seconds=seconds,
    best_seconds=min(taken),
    rounds=len(taken),
    examples_per_s=ours["rows"] / seconds,
    peak_rss_gib=facts["peak_rss"] / 2**30,
    tflop=ours["tflop"],
    gemm_gflops=limit / 1e9,
    fraction=operations / limit / seconds,
    versions=facts["versions"],
  )
