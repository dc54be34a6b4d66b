"""The trainer: one launch runs the stages of a config, one after the other, in one workdir.

    python -m bigvlm.trainers.train --config=configs/quickstart.py --workdir=DIR

The same command with the same workdir goes on where the last run stopped, bit for bit:
a checkpoint holds parameters, optimiser, average, keys, step and the place in the data
together. `bigvlm train` calls the same `run`. Exit codes: 0 finished, or saved after
SIGTERM; 2 bad input; 3 and 4 non-finite losses (see `trainers.launch`).

Files in the workdir: `config.json`, `metrics.jsonl`, `tensorboard/`, `checkpoints/<stage>/<step>`,
`results/<stage>.json` (marks a stage as finished), `summary.json`, `report.md` and pictures.
"""

import json
import pathlib
import sys
import time
from typing import Any

import jax

from bigvlm import config as config_lib
from bigvlm.evaluators import base
from bigvlm.trainers import evaluate, launch, loop, metrics, prepare, starting, together
from bigvlm.trainers import stages as stages_lib
from bigvlm.utils import log


def run(config: Any, workdir: str | pathlib.Path, *, stages: Any = None, summary: bool = True):
  """Trains the stages of a config that are not finished yet.

  Args:
    config: from `bigvlm.config.load` or `parse_argv`.
    workdir: where everything is written, and found again.
    stages: indices of the stages to run; None = all.
    summary: whether to write `summary.json` and the report at the end.

  Returns:
    The summary: `{"seconds", "stages": [{"name", "steps", "seconds", "metrics"}]}`.

  Raises:
    ValueError: bad config; told before anything is compiled.
    launch.Preempted: SIGTERM came, all is saved.
    launch.NonFiniteError: see `config.nonfinite`.
  """
  launch.initialize()
  with launch.Stop() as stop, together.Together(), Run(config, workdir, stop) as run_:
    prepare.run(run_.config, run_.workdir)
    for built in run_.build(stages):
      loop.train_stage(run_, built)
    return run_.summary(write=summary)


class Run:
  """What all stages of a launch share.

  Attributes:
    config: checked. workdir: path. plan: all stages. stop: tells of SIGTERM.
    main: whether this process writes. writer, profiler: see `trainers.metrics`.
    clock: when the time that belongs to the running stage began.
    previous: (stage, its last tensors by name) of the stage that ended last in this launch.
    evaluators: those of the stages to come, by name; their sources are open.
  """

  def __init__(self, config: Any, workdir: str | pathlib.Path, stop: launch.Stop):
    self.config = config_lib.check(config)
    self.workdir = pathlib.Path(workdir)
    self.plan: list[stages_lib.Stage] = []
    self.stop = stop
    self.main = jax.process_index() == 0
    self.previous = None
    self.evaluators: dict[str, list[base.Evaluator]] = {}
    self.clock = time.monotonic()
    options = self.config.log
    self.writer = metrics.Writer(self.workdir, options.tensorboard, self.main)
    self.profiler = metrics.Profiler(self.workdir, options.profile_at, options.profile_steps)

  def __enter__(self):
    text, path = config_lib.to_json(self.config), self.workdir / "config.json"
    if self.main:
      if path.exists() and path.read_text() != text:
        log.warn(f"the config is not the one {path} was written from; finished stages stay")
      metrics.write_atomic(path, text)
    return self

  def __exit__(self, *exc):
    self.writer.close()
    self.profiler.close()

  def build(self, wanted: Any) -> list[stages_lib.Built]:
    """Builds the wanted stages that are not finished and checks how each starts."""
    self.clock = time.monotonic()
    self.plan = stages_lib.resolve(self.config, self.workdir)
    chosen = range(len(self.plan)) if wanted is None else wanted
    left = [s for s in self.plan if s.index in chosen and self.result(s) is None]
    for stage in left:
      self.evaluators[stage.name] = evaluate.check(stage, self.workdir)
    built = [stages_lib.build(self.config, s, self.workdir) for s in left]
    if len(left) == len(self.plan):
      stages_lib.check_rules(self.config, built)
    for first, second in zip(built, built[1:], strict=False):
      starting.check_start(first, second)
    return built

  def result(self, stage: stages_lib.Stage) -> dict | None:
    """What a finished stage left behind."""
    path = self.workdir / "results" / f"{stage.name}.json"
    return json.loads(path.read_text()) if path.exists() else None

  def finish(self, stage: stages_lib.Stage, tensors: dict, seconds: float, found: dict) -> None:
    """Leaves the result of a stage, which marks it as done, and its tensors for the next."""
    result = dict(name=stage.name, steps=stage.steps, seconds=round(seconds, 3), metrics=found)
    if self.main:
      path = self.workdir / "results" / f"{stage.name}.json"
      metrics.write_atomic(path, json.dumps(result, indent=2) + "\n")
    launch.barrier(f"finished {stage.name}")
    self.previous, self.clock = (stage, tensors), time.monotonic()
    self.evaluators.pop(stage.name)

  def total(self, stage: stages_lib.Stage, step: int) -> int:
    """Steps over all stages, for TensorBoard."""
    return sum(s.steps for s in self.plan[: stage.index]) + step

  def summary(self, write: bool) -> dict:
    """The results of all finished stages; `write` puts them into the workdir with the report."""
    done = [r for r in map(self.result, self.plan) if r is not None]
    seconds = prepare.seconds(self.workdir) + sum(r["seconds"] for r in done)
    out = dict(seconds=round(seconds, 3), stages=done)
    if write and self.main:
      metrics.write_atomic(self.workdir / "summary.json", json.dumps(out, indent=2) + "\n")
      from bigvlm.trainers import report

      report.write(self.workdir)
    return out


def main(argv: list[str]) -> int:
  """The words after `bigvlm train`; returns the exit code. Errors are told by `bigvlm.cli`."""
  hosts, rest = launch.take_flags(argv)
  config, workdir, wanted = config_lib.parse_argv(rest)
  launch.initialize(hosts.coordinator, hosts.num_processes, hosts.process_id)
  run(config, workdir, stages=wanted)
  return 0


if __name__ == "__main__":
  from bigvlm import cli

  sys.exit(cli.main(["train", *sys.argv[1:]]))
