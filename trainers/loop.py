"""The steps of one stage: feed, step, read what it said two steps later, save, evaluate.

The host never waits for the newest step: what a step reports is read `LAG` steps
later. A step that must not be passed halts the state on the device, so that the
steps in between do nothing (see `trainers.step`).
"""

import collections
import itertools
import json
import math
import pathlib
import time
from typing import Any

import jax
import numpy as np

from bigvlm.ckpt import native
from bigvlm.data import loader as loader_lib
from bigvlm.evaluators import base
from bigvlm.trainers import evaluate, feed, launch, metrics, report, saved, stages, starting
from bigvlm.utils import log

LAG = 2
_tries = itertools.count()  # Of stages in this process; a rollback is another. The same in all.


def train_stage(run: Any, built: stages.Built) -> None:
  """Trains one stage to its end, over as many rollbacks as the config allows.

  Args:
    run: the `trainers.train.Run`.
    built: the stage.
  """
  options = run.config.checkpoint
  saver = native.Checkpointer(
    run.workdir / "checkpoints" / built.stage.name,
    keep=options.keep,
    keep_every=options.keep_every,
    verify=options.verify,
  )
  try:
    while True:
      state, meta = _restore_or_start(run, built, saver)
      if _Loop(run, built, saver, state, meta).run():
        return
      del state
  finally:
    saver.close()


def _restore_or_start(run: Any, built: stages.Built, saver: native.Checkpointer) -> tuple:
  """(state, meta of its checkpoint; {} at the start of a stage)."""
  stage = built.stage
  if saver.latest() is not None:
    state, meta = saver.restore(built.state)
    log.line(f"stage {stage.name}: goes on at step {meta['step']} of {stage.steps}")
    done = [s.name for s in run.plan[: stage.index]]
    run.writer.rewind(done, stage.name, meta["step"], stage.steps)
    return state, meta
  before, run.previous = run.previous, None
  init = stage.cfg["init"]
  own = init["source"] == "previous" and not init["parts"]
  if not own or before is None or before[0].index != stage.index - 1:
    before = saved.before(run.plan, built, run.workdir)
  run.writer.rewind([s.name for s in run.plan[: stage.index]], stage.name, 0, stage.steps)
  state = starting.start(run.config, built, *(before or ()))
  if run.main:
    log.line(metrics.parameter_table(built.state.params, built.state.frozen))
    log.line(f"stage {stage.name}: {stage.steps} steps of {stage.cfg['batch_size']} examples")
  return state, {}


class _Loop:
  """One stage from a state to its end."""

  def __init__(self, run: Any, built: stages.Built, saver: Any, state: Any, meta: dict):
    self.launch, self.built, self.saver, self.state, self.meta = run, built, saver, state, meta
    self.stage, self.config = built.stage, run.config
    self.evaluators = run.evaluators[built.stage.name]
    self.step = int(meta.get("step", 0))
    self.saved = self.step if meta else -1
    self.seconds = float(meta.get("seconds", 0.0))
    self.pending = collections.deque()
    self.save_wish, self.ignore_until, self.saved_at = False, 0, time.monotonic()
    label = f"stage {self.stage.index + 1}/{len(run.plan)} {self.stage.name}"
    batch = self.stage.cfg["batch_size"]
    self.progress = metrics.Progress(label, self.step, self.stage.steps, batch, run.main)

  def run(self) -> bool:
    """Runs to the end of the stage; False = rolled back, to be run again from the checkpoint."""
    try:
      if self.config.nonfinite.policy == "rollback" and not self.meta:
        self._save(None)  # There is always something to go back to.
      if self.step < self.stage.steps and not self._steps():
        return False
      self.saver.wait()
      found = self._evaluate(self.evaluators, last=True)
      total, count = np.asarray(self.state.metrics["loss"]).tolist()
      values = {"train/loss": total / count if count else math.nan, **found}
      kept = {name: value for name, value in values.items() if math.isfinite(value)}
      self.launch.finish(self.stage, starting.tensors(self.state), self._seconds(), kept)
      return True
    finally:
      self.progress.close()

  def _steps(self) -> bool:
    every, last = self.config.checkpoint.every_steps, self.stage.steps
    batches = feed.Feed(
      self._loader(),
      self.built.mesh,
      position=self.meta.get("position", 0),
      windows=_windows(self.launch.workdir, self.stage.name),
      vote=self._wants_save,
    )
    try:
      return self._go(batches, every, last)
    finally:
      batches.close()
      self.launch.profiler.end(self.step)

  def _compiled(self, fed: feed.Fed) -> Any:
    """The executable of the step; when it returns, all processes have theirs."""
    step = self.built.step.lower(self.state, fed.arrays).compile()
    launch.meet(f"compiled {self.stage.name} from {self.step}, try {next(_tries)}")
    return step

  def _go(self, batches: feed.Feed, every: int, last: int) -> bool:
    step = None
    while self.step < last:
      self.launch.profiler.step(self.step, self.state)
      fed = next(batches)
      step = step or self._compiled(fed)
      with jax.profiler.StepTraceAnnotation("train", step_num=self.step):
        self.state, out = step(self.state, fed.arrays)
      self.step += 1
      self.progress.step()
      self.pending.append((self.step, fed, out))
      self._poll()
      if not self._settle(LAG):
        return False
      evals = [
        e
        for e in self.evaluators
        if e.cfg["every"] and self.step % e.cfg["every"] == 0 and self.step < last
      ]
      stop = self.launch.stop.reached()
      due = self.save_wish or (every and self.step % every == 0)
      if evals or stop or due or self.step == last:
        if not self._settle(0):
          return False
        self._evaluate(evals)
        if stop or due or self.step == last:
          self._save(fed)
      if stop:
        self._leave()
    return True

  def _loader(self) -> Any:
    cfg, options = self.stage.cfg, self.config.loader
    loader = loader_lib.train_loader(
      cfg["data"],
      self.built.processor,
      batch_size=cfg["batch_size"],
      seed=self.config.seed + self.stage.index,
      process_index=jax.process_index(),
      process_count=jax.process_count(),
      threads=options.threads,
      workers=options.workers,
      prefetch=options.prefetch,
      bad_records=dict(self.config.bad_records),
      workdir=str(self.launch.workdir),
    )
    if "data" in self.meta:
      loader.restore(self.meta["data"])
    return loader

  def _wants_save(self) -> int:
    every = self.config.checkpoint.every_seconds
    return int(every > 0 and time.monotonic() - self.saved_at >= every)

  def _settle(self, most: int) -> bool:
    """Reads what steps reported until `most` are unread; False after a rollback."""
    while len(self.pending) > most:
      step, fed, out = self.pending.popleft()
      bad, halted, skipped, vote = np.asarray(out["flags"]).tolist()
      if bad and not self._non_finite(step, fed, bool(halted), skipped):
        return False
      if vote and step > self.ignore_until:
        self.save_wish = True
      if step % self.config.log.every == 0 or step == self.stage.steps:
        self._log(step, out, skipped)
    return True

  def _log(self, step: int, out: dict, skipped: int) -> None:
    sums, lr = jax.device_get((out["metrics"], out["lr"]))
    values = {f"train/{k}": float(s / n) for k, (s, n) in sorted(sums.items()) if n > 0}
    values.update({"train/lr": float(lr), "train/skipped": skipped})
    self.progress.show(step, values.get("train/loss", math.nan), float(lr))
    timing = {"time/examples_per_second": self.progress.rate, "time/seconds": self._seconds()}
    total = self.launch.total(self.stage, step)
    self.launch.writer.write(self.stage.name, step, total, {**values, **timing})

  def _seconds(self) -> float:
    return self.seconds + time.monotonic() - self.launch.clock

  def _non_finite(self, step: int, fed: feed.Fed, halted: bool, skipped: int) -> bool:
    """Tells of a bad step; raises, or rolls back (False), when the step halted the state."""
    named = [s.get("name") or s["kind"] for s in self.stage.cfg["data"]["sources"]]
    where = (
      f"stage {self.stage.name} step {step}: loss or gradient is not finite; "
      f"examples {feed.describe(fed.ids, named, limit=64)}"
    )
    options = self.config.nonfinite
    if not halted:
      log.warn(f"{where}; the step is skipped, {skipped} so far")
      return True
    if options.policy == "rollback" and self._roll_back(fed, where):
      return False
    code, why = launch.EXIT_NONFINITE, "nonfinite.policy is 'stop'"
    if options.policy == "skip":
      why = f"{options.max_in_a_row} such steps in a row"
    elif options.policy == "rollback":
      code, why = launch.EXIT_ROLLBACKS, f"all {options.max_rollbacks} rollbacks are used"
    raise launch.NonFiniteError(f"{where}; {why}; the last checkpoint is intact", code)

  def _roll_back(self, fed: feed.Fed, where: str) -> bool:
    """Notes the batches since the last checkpoint as to be passed over; False = no more allowed."""
    self._poll(wait=True)
    past = _rollbacks(self.launch.workdir)
    if len(past) >= self.config.nonfinite.max_rollbacks:
      return False
    begin = int(self.saver.describe(self.saver.latest())[1]["position"])
    past.append(dict(stage=self.stage.name, begin=begin, end=fed.position))
    launch.barrier("rollback read")
    if self.launch.main:
      metrics.write_atomic(self.launch.workdir / "rollbacks.json", json.dumps(past) + "\n")
    launch.barrier("rollback written")
    log.warn(f"{where}; rolls back and passes over batches {begin + 1} to {fed.position}")
    return True

  def _evaluate(self, evals: list[base.Evaluator], last: bool = False) -> dict[str, float]:
    """Runs evaluators; the last time it leaves on SIGTERM and keeps what was predicted."""
    if not evals:
      return {}
    runner = evaluate.model(self.config, self.built, starting.tensors(self.state))
    found, shown = {}, []
    for evaluator in evals:
      if last and self.launch.stop.reached():
        self._leave()
      found.update(evaluate.run_one(runner, evaluator, shown if last else None))
    if last and self.launch.main:
      report.save_records(self.launch.workdir, self.stage.name, shown)
    total = self.launch.total(self.stage, self.step)
    self.launch.writer.write(self.stage.name, self.step, total, found)
    self.progress.pause()
    return found

  def _save(self, fed: feed.Fed | None) -> None:
    """Begins to save the state, once all steps up to it are known to be good."""
    if self.saved == self.step:
      return
    meta = dict(stage=self.stage.name, step=self.step, seconds=self._seconds(), position=0)
    if fed is not None:
      meta.update(position=fed.position, data=fed.data)
    self._poll(wait=True)
    self.saver.save(self.step, self.state, meta)
    self.saved, self.saved_at = self.step, time.monotonic()
    # Batches that were fed before this save still carry the wish for it.
    self.save_wish, self.ignore_until = False, self.step + feed.DEPTH

  def _poll(self, wait: bool = False) -> None:
    """Tells of a save that failed in the background. The run goes on: the next may succeed."""
    try:
      if wait:
        self.saver.wait()
      else:
        self.saver.poll()
    except native.CheckpointError as e:
      log.warn(str(e))

  def _leave(self) -> None:
    self.saver.wait()
    log.line(f"stopped: stage {self.stage.name}, step {self.step} is saved; run again to go on")
    raise launch.Preempted(self.stage.name, self.step)


def _rollbacks(workdir: pathlib.Path) -> list[dict]:
  path = workdir / "rollbacks.json"
  return json.loads(path.read_text()) if path.exists() else []


def _windows(workdir: pathlib.Path, stage: str) -> tuple[tuple[int, int], ...]:
  return tuple((r["begin"], r["end"]) for r in _rollbacks(workdir) if r["stage"] == stage)
