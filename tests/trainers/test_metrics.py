"""What a run writes for people and programs."""

import io
import json
import re
import sys

import jax
import jax.numpy as jnp
import numpy as np

from bigvlm.trainers import feed, metrics
from bigvlm.utils import log


def lines(workdir):
  return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def test_a_resumed_run_writes_its_lines_again(tmp_path):
  writer = metrics.Writer(tmp_path, tensorboard=False)
  train = {"train/loss": 1.0, "train/lr": 0.1}
  writer.write("one", 8, 8, train)
  writer.write("one", 8, 8, {"vqa/which": 0.5})
  writer.write("two", 4, 12, train)
  writer.write("two", 4, 12, {"vqa/which": 0.5})
  writer.write("two", 8, 16, train)
  writer.write("two", 8, 16, {"vqa/which": 0.6})
  writer.close()
  with open(tmp_path / "metrics.jsonl", "a") as f:
    f.write('{"stage": "two", "st')  # A killed process may leave half a line.

  def kept(step):
    metrics.Writer(tmp_path, tensorboard=False).rewind(["one"], "two", step, last=8)
    return [(r["stage"], r["step"], "train/lr" in r) for r in lines(tmp_path)]

  start = [("one", 8, True), ("one", 8, False)]
  # At the end of a stage the evaluators run after the last checkpoint, so they run again.
  assert kept(8) == start + [("two", 4, True), ("two", 4, False), ("two", 8, True)]
  assert kept(4) == start + [("two", 4, True), ("two", 4, False)]
  assert kept(0) == start


def test_a_writer_goes_on_after_a_rewind(tmp_path):
  """A launch rewinds at each of its stages, with the file open."""
  writer = metrics.Writer(tmp_path, tensorboard=False)
  writer.write("one", 1, 1, {"a": 1.0})
  writer.rewind(["one"], "two", 0, last=4)
  writer.write("two", 1, 2, {"a": 2.0})
  writer.close()
  assert [r["stage"] for r in lines(tmp_path)] == ["one", "two"]


def test_numbers_that_json_lacks_are_written_as_words(tmp_path):
  writer = metrics.Writer(tmp_path, tensorboard=False)
  writer.write("one", 1, 1, {"a": float("nan"), "b": 1.5})
  assert lines(tmp_path) == [dict(stage="one", step=1, a="nan", b=1.5)]


def test_tensorboard_files_appear_when_asked_for(tmp_path):
  writer = metrics.Writer(tmp_path, tensorboard=True)
  writer.write("one", 1, 1, {"a": 1.0})
  writer.close()
  assert list((tmp_path / "tensorboard").glob("events*"))
  quiet = metrics.Writer(tmp_path / "quiet", tensorboard=True, active=False)
  quiet.write("one", 1, 1, {"a": 1.0})
  assert not (tmp_path / "quiet").exists()


def test_the_parameter_table_tells_what_trains():
  train = {"b": {"kernel": np.zeros((3, 4), np.float32)}}
  table = metrics.parameter_table(train, {"a": np.zeros((), np.float32)})
  first, second, total = table.splitlines()
  assert first.split() == ["a", "scalar", "float32", "1", "frozen"]
  assert second.split() == ["b/kernel", "3x4", "float32", "12", "train"]
  assert total.strip() == "12 parameters train, 1 are frozen"


def test_one_line_a_log_interval_without_a_terminal(capsys):
  progress = metrics.Progress("stage 1/4 pair", 0, 100, 8)
  progress.show(10, 1.25, 1e-3)
  err = capsys.readouterr().err
  for part in ("stage 1/4 pair", "step 10/100", "loss 1.25", "lr 1.00e-03", "examples/s", "ETA 0:"):
    assert part in err
  assert err.count("\n") == 1


class Terminal(io.StringIO):
  """What a person would look at, as one string."""

  def isatty(self):
    return True


def test_a_bar_in_a_terminal(monkeypatch):
  monkeypatch.setattr(sys, "stderr", Terminal())
  progress = metrics.Progress("stage 2/4 low", 10, 100, 8)
  for _ in range(5):
    progress.step()
  progress.show(15, 1.25, 1e-3)
  log.line("a line of somebody else")
  progress.close()
  log.line("after the bar")
  shown = sys.stderr.getvalue()
  last = shown.replace("a line of somebody else", "").split("\r")[-1]
  for part in ("stage 2/4 low", "15/100", "loss 1.25", "lr 0.001", "examples/s", "<0"):
    assert part in last, part
  # Other lines have a row for themselves, and the bar comes back under them.
  assert re.search(r"\r *\ra line of somebody else\n", shown)
  assert shown.endswith("\nafter the bar\n")
  rows = metrics.Progress("quiet", 0, 100, 8, active=False)
  rows.show(10, 1.25, 1e-3)
  assert "quiet" not in sys.stderr.getvalue()


def test_a_profile_of_the_steps_that_were_asked_for(tmp_path, capsys):
  add = jax.jit(lambda x: x + 1)
  profiler = metrics.Profiler(tmp_path, at=1, steps=2)
  x = jnp.zeros(())
  for step in range(5):
    profiler.step(step, x)
    assert (profiler._from is not None) == (step in (1, 2))
    x = add(x)
  profiler.close()
  assert f"profile of steps 1 to 2: {tmp_path / 'profile'}" in capsys.readouterr().err
  assert len(list((tmp_path / "profile").rglob("*.xplane.pb"))) == 1  # TensorBoard.
  assert len(list((tmp_path / "profile").rglob("*.trace.json.gz"))) == 1  # Perfetto.


def test_a_profile_ends_with_its_stage_and_is_missed_aloud(tmp_path, capsys):
  profiler = metrics.Profiler(tmp_path, at=1, steps=50)
  profiler.step(1, None)
  profiler.end(2)
  profiler.step(1, None)  # The next stage is not profiled again.
  profiler.close()
  err = capsys.readouterr().err
  assert "profile of steps 1 to 1" in err and "log.profile_at" not in err
  metrics.Profiler(tmp_path, at=-1, steps=5).close()
  assert not capsys.readouterr().err
  metrics.Profiler(tmp_path, at=90, steps=5).close()
  assert "log.profile_at is 90" in capsys.readouterr().err


class Loader:
  """Counts batches; `ids` tell which."""

  def __init__(self, at=0):
    self.at, self.closed = at, False

  def __next__(self):
    self.at += 1
    return dict(x=np.full((8, 2), self.at, np.float32), ids=np.full((8, 2), self.at))

  def state(self):
    return dict(step=self.at)

  def close(self):
    self.closed = True


def test_a_feed_tells_the_place_of_each_batch(devices):
  mesh = feed.mesh_lib.make(dict(data=8), devices)
  loader = Loader(at=3)
  batches = feed.Feed(loader, mesh, position=3, vote=lambda: loader.at)
  for want in (4, 5, 6):
    fed = next(batches)
    assert (fed.position, fed.data, fed.ids[0, 0]) == (want, dict(step=want), want)
    assert float(fed.arrays["x"][0, 0]) == want and "ids" not in fed.arrays
    assert int(fed.arrays["vote"][0]) == want
    assert isinstance(fed.arrays["x"], jax.Array)
  batches.close()
  assert loader.closed


def test_a_feed_passes_over_windows(devices):
  mesh = feed.mesh_lib.make(dict(data=8), devices)
  batches = feed.Feed(Loader(), mesh, windows=((1, 3), (4, 5)))
  assert [next(batches).position for _ in range(4)] == [1, 4, 6, 7]


def test_examples_are_named_by_source_and_record():
  ids = np.array([[0, 17], [1, 4], [0, 2]])
  assert feed.describe(ids, ["digits", "coco"], limit=2) == "digits[17], coco[4] and 1 more"
