"""What people see of a run: JSON Lines, TensorBoard, progress, the parameter table, profiles."""

import json
import math
import os
import pathlib
import sys
import time
from typing import Any

from bigvlm.utils import log
from bigvlm.utils import tree as tree_lib


def write_atomic(path: str | os.PathLike, text: str) -> None:
  """Writes a file so that it is there whole or not at all."""
  path = pathlib.Path(path)
  path.parent.mkdir(parents=True, exist_ok=True)
  tmp = path.with_name(f"{path.name}.tmp{os.getpid()}")
  with open(tmp, "w") as f:
    f.write(text)
    f.flush()
    os.fsync(f.fileno())
  os.replace(tmp, path)


class Writer:
  """`metrics.jsonl` (always) and `tensorboard/` (by config). One process writes."""

  def __init__(self, workdir: pathlib.Path, tensorboard: bool = True, active: bool = True):
    self._path = workdir / "metrics.jsonl"
    self._board_dir = workdir / "tensorboard" if tensorboard and active else None
    self._active, self._board = active, None
    self._file = None

  def rewind(self, done: list[str], stage: str, step: int, last: int) -> None:
    """Drops the lines that a run resumed at `step` of `stage` writes again, the same.

    Args:
      done: stages that are finished; their lines stay.
      stage, step: where the run goes on.
      last: steps of the stage; evaluations there come after its last checkpoint.
    """

    def stays(record):
      if record["stage"] in done:
        return True
      evaluated = record["step"] == last and "train/lr" not in record
      return record["stage"] == stage and record["step"] <= step and not evaluated

    if not self._active or not self._path.exists():
      return
    if self._file is not None:
      self._file.close()  # It is about to be another file of this name.
      self._file = None
    kept = []
    for line in self._path.read_text().splitlines():
      try:
        record = json.loads(line)
      except ValueError:
        continue  # The torn last line of a killed process.
      if stays(record):
        kept.append(line)
    write_atomic(self._path, "".join(f"{line}\n" for line in kept))

  def write(self, stage: str, step: int, total: int, values: dict[str, float]) -> None:
    """Writes one line: `values` at `step` of `stage`; `total` counts steps over all stages."""
    if not self._active:
      return
    if self._file is None:
      self._path.parent.mkdir(parents=True, exist_ok=True)
      self._file = open(self._path, "a")
    clean = {k: v if math.isfinite(v) else repr(v) for k, v in values.items()}
    self._file.write(json.dumps(dict(stage=stage, step=step, **clean)) + "\n")
    self._file.flush()
    if self._board_dir is not None:
      if self._board is None:
        from tensorboardX import SummaryWriter

        self._board = SummaryWriter(str(self._board_dir), purge_step=total)
      for name, value in values.items():
        self._board.add_scalar(name, value, total)

  def close(self) -> None:
    if self._file is not None:
      self._file.close()
    if self._board is not None:
      self._board.close()


class Progress:
  """A bar on a terminal, else one line a log interval. One process shows it."""

  def __init__(self, label: str, step: int, total: int, batch: int, active: bool = True):
    self._label, self._total, self._batch, self._active = label, total, batch, active
    self._bar = None
    self._at, self._since = step, time.monotonic()
    self.rate = 0.0  # Examples a second over the last interval.
    if active and sys.stderr.isatty():
      import tqdm

      self._bar = tqdm.tqdm(total=total, initial=step, desc=label, unit="step", dynamic_ncols=True)
      log.above(lambda text: tqdm.tqdm.write(text, file=sys.stderr))

  def step(self) -> None:
    if self._bar is not None:
      self._bar.update()

  def show(self, step: int, loss: float, lr: float) -> None:
    """Called at log steps, with numbers that are known already."""
    now = time.monotonic()
    if step > self._at:
      self.rate = (step - self._at) * self._batch / max(now - self._since, 1e-9)
    self._at, self._since = step, now
    if not self._active:
      return
    if self._bar is not None:
      self._bar.set_postfix_str(f"loss {loss:.4g}, lr {lr:.3g}, {self.rate:.4g} examples/s")
      return
    left = (self._total - step) * self._batch / self.rate if self.rate else math.nan
    log.line(
      f"{self._label}  step {step}/{self._total}  loss {loss:.4f}  lr {lr:.2e}  "
      f"{self.rate:.1f} examples/s  ETA {duration(left)}"
    )

  def pause(self) -> None:
    """Starts the clock again: the time since the last line was not spent on steps."""
    self._since = time.monotonic()

  def close(self) -> None:
    if self._bar is not None:
      self._bar.close()
      log.above(None)


def duration(seconds: float) -> str:
  """Seconds as h:mm:ss."""
  if not math.isfinite(seconds):
    return "-"
  minutes, second = divmod(round(seconds), 60)
  return f"{minutes // 60}:{minutes % 60:02d}:{second:02d}"


def parameter_table(trainable: Any, frozen: Any) -> str:
  """One line a parameter: name, shape, dtype, count, trains or frozen; then the sums."""
  rows = [(name, x, "train") for name, x in tree_lib.flatten(trainable).items()]
  rows += [(name, x, "frozen") for name, x in tree_lib.flatten(frozen).items()]
  rows.sort(key=lambda row: row[0])
  width = max(len(name) for name, _, _ in rows)
  shapes = ["x".join(map(str, x.shape)) or "scalar" for _, x, _ in rows]
  lines = [
    f"  {name:<{width}}  {shape:>18}  {x.dtype!s:>9}  {x.size:>13,}  {kind}"
    for (name, x, kind), shape in zip(rows, shapes, strict=True)
  ]

  def count(wanted):
    return sum(x.size for _, x, kind in rows if kind == wanted)

  total = f"{count('train'):,} parameters train, {count('frozen'):,} are frozen"
  return "\n".join([*lines, f"  {total}"])


class Profiler:
  """A trace of `steps` steps from step `at` of the first stage that gets there; at < 0 = none.

  It lies in `workdir/profile`: `*.xplane.pb` for TensorBoard's profile plugin, `*.trace.json.gz`
  for Perfetto. A trace ends with its stage.
  """

  def __init__(self, workdir: pathlib.Path, at: int, steps: int):
    self._dir, self._at, self._steps = workdir / "profile", at, steps
    self._from: int | None = None  # While it runs.
    self._wanted = at >= 0

  def step(self, step: int, made: Any) -> None:
    """Called before the step with index `step`; `made` are arrays that the steps before it make.

    They are waited for at both ends, so that the trace has these steps whole and no others.
    """
    import jax

    if self._from is not None and step >= self._at + self._steps:
      jax.block_until_ready(made)
      self.end(step)
    if self._wanted and step == self._at:
      jax.block_until_ready(made)
      jax.profiler.start_trace(str(self._dir))
      self._from, self._wanted = step, False

  def end(self, step: int) -> None:
    """Called where the steps of a stage end: before the step with index `step`."""
    import jax

    if self._from is not None:
      jax.profiler.stop_trace()
      log.line(f"profile of steps {self._from} to {step - 1}: {self._dir}")
      self._from = None

  def close(self) -> None:
    """The end of the run; warns if no step was traced that should have been."""
    if self._wanted:
      log.warn(f"log.profile_at is {self._at}, but no stage of this launch came to that step")
