"""Whole runs of three small stages in this process, and what they leave behind."""

import json
import os
import shutil
import signal

import numpy as np
import pytest
from PIL import Image

from bigvlm import cli, config
from bigvlm.ckpt import native
from bigvlm.data import sources
from bigvlm.trainers import evaluate, feed, launch, loop, stages, train
from bigvlm.utils import tree as tree_lib
from tests.reliability import toy

STAGES = ("pair", "low", "high")


def manifest(workdir, stage):
  """Digests of the last state of a stage."""
  folder = workdir / "checkpoints" / stage
  step = max(int(p.name) for p in folder.iterdir() if p.name.isdigit())
  return json.loads((folder / str(step) / "manifest" / "manifest.json").read_text())["tensors"]


def lines(workdir):
  found = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
  return [{k: v for k, v in line.items() if not k.startswith("time/")} for line in found]


@pytest.fixture(scope="module")
def done(tmp_path_factory):
  """The workdir of a run that nobody disturbed, and its summary."""
  workdir = tmp_path_factory.mktemp("straight")
  return workdir, train.run(toy.get_config("stages"), workdir)


def test_a_run_leaves_its_summary_config_and_metrics(done):
  workdir, summary = done
  assert json.loads((workdir / "summary.json").read_text()) == summary
  assert [(s["name"], s["steps"]) for s in summary["stages"]] == [
    ("pair", 4),
    ("low", 24),
    ("high", 4),
  ]
  for stage in summary["stages"]:
    assert set(stage) == {"name", "steps", "seconds", "metrics"}
    assert all(isinstance(v, float) and np.isfinite(v) for v in stage["metrics"].values())
  assert summary["seconds"] >= sum(s["seconds"] for s in summary["stages"])
  saved = config.from_json((workdir / "config.json").read_text())
  assert saved == config.check(toy.get_config("stages"))
  assert [(r["stage"], r["step"]) for r in lines(workdir) if r["stage"] != "low"] == [
    ("pair", 4),
    ("high", 4),
  ]
  assert (workdir / "report.md").exists()


def test_training_learns(done):
  losses = [r["train/loss"] for r in lines(done[0]) if r["stage"] == "low"]
  assert losses[-1] < losses[0] - 0.5


def test_a_finished_run_relaunched_writes_the_same_summary(done, monkeypatch):
  workdir, summary = done
  before = (workdir / "summary.json").read_bytes()
  monkeypatch.setattr(loop, "train_stage", lambda *_: pytest.fail("a finished stage was trained"))
  assert train.run(toy.get_config("stages"), workdir) == summary
  assert (workdir / "summary.json").read_bytes() == before


def test_stage_by_stage_and_through_sigterm_it_ends_the_same(done, tmp_path, monkeypatch):
  """From disk instead of memory, and with a stop in the second stage: the same bits."""
  straight, _ = done
  summary = train.run(toy.get_config("stages"), tmp_path, stages=(0,))
  assert [s["name"] for s in summary["stages"]] == ["pair"]
  plain = feed.Feed.__next__

  def told(self):
    fed = plain(self)
    if fed.position == 7:
      os.kill(os.getpid(), signal.SIGTERM)
    return fed

  with monkeypatch.context() as patch:
    patch.setattr(feed.Feed, "__next__", told)
    with pytest.raises(launch.Preempted) as left:
      train.run(toy.get_config("stages"), tmp_path)
  assert (left.value.code, left.value.stage, left.value.step) == (0, "low", 7)
  assert (tmp_path / "checkpoints" / "low" / "7").is_dir()
  assert not (tmp_path / "results" / "low.json").exists()
  assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL

  train.run(toy.get_config("stages"), tmp_path)
  for stage in STAGES:
    assert manifest(tmp_path, stage) == manifest(straight, stage), stage
  assert lines(tmp_path) == lines(straight)


def test_a_stage_cannot_start_from_one_that_is_not_there(tmp_path):
  with pytest.raises(
    ValueError, match=r"stages\[1\].init.source='previous': stage 'pair' is not f"
  ):
    train.run(toy.get_config("stages"), tmp_path, stages=(1,))


def test_the_model_of_a_stage_answers_on_one_device(done):
  workdir, _ = done
  model = evaluate.load(workdir, "low")
  assert model.mesh.size == 1
  flat = tree_lib.flatten(model.params)
  got = evaluate.load(workdir / "checkpoints" / "low" / "24")
  for name, x in tree_lib.flatten(got.params).items():
    np.testing.assert_array_equal(x, flat[name])
  answers = model.generate([np.zeros((16, 16, 3), np.uint8)], ["caption en"], max_new_tokens=3)
  assert len(answers) == 1 and isinstance(answers[0], str)
  assert evaluate.load(workdir).config["processor"]["image"]["size"] == 32  # The last stage.


def test_an_averaged_stage_is_evaluated_by_its_average(done):
  workdir, _ = done
  model = evaluate.load(workdir, "low")
  tensors = evaluate.saved.read(workdir, "low", model.mesh, ("params", "ema"))
  name = "decoder/embedding"
  np.testing.assert_array_equal(tree_lib.flatten(model.params)[name], tensors[f"ema/{name}"])
  assert np.any(np.asarray(tensors[f"ema/{name}"]) != np.asarray(tensors[f"params/{name}"]))


def told(capsys, *argv):
  """(exit code, what `bigvlm` said)."""
  capsys.readouterr()
  code = cli.main([str(word) for word in argv])
  return code, capsys.readouterr().err.strip().splitlines()[-1]


TOY = toy.__file__


def test_a_checkpoint_of_another_shape_is_refused(done, tmp_path, capsys):
  workdir = tmp_path / "copy"
  shutil.copytree(done[0], workdir)
  (workdir / "results" / "low.json").unlink()
  flags = [f"--workdir={workdir}", "--stages=low", "--config.model.decoder.hidden=32"]
  code, said = told(capsys, "train", f"{TOY}:stages", *flags)
  assert code == 2
  for part in ("checkpoint 24", "decoder/blocks/g0/b0/mlp/", "(1, 24, 16)", "(1, 32, 16)"):
    assert part in said


@pytest.mark.parametrize(
  ("flag", "parts"),
  [
    ("stages.low.data.sources.which.kind=digit", ("stages[0].data (low)", "'digit'", "'digits'")),
    ("stages.low.objective.kind=prefixlm", ("unknown objective 'prefixlm'", "'prefix_lm'")),
    ("stages.low.batch_size=20", ("stages[0].batch_size", "not divisible by the 8 parts")),
    ("mesh.data=64", ("mesh", "needs 64 devices, there are 8")),
    ('stages.low.train=("decodr/.*",)', ("stages[0].train", "'decodr/.*'", "matches no parameter")),
    ("stages.low.processor.image.size=20", ("stages[0] (low)", "20x20", "the patch 8")),
    ("stages.low.steps=0", ("stages[0] (low)", "exactly one of steps, examples and epochs")),
    ("stages.low.init.source=/nowhere", ("stages[0].init.source='/nowhere'", "no workdir")),
  ],
)
def test_bad_input_is_told_in_one_line(done, tmp_path, capsys, flag, parts):
  shutil.copy(done[0] / "tokenizer.model", tmp_path)
  code, said = told(capsys, "train", TOY, f"--workdir={tmp_path}", f"--config.{flag}")
  assert code == 2
  for part in parts:
    assert part in said
  assert not (tmp_path / "metrics.jsonl").exists()


def scored(folder, records):
  """The toy whose last stage is scored on these records; None = on a file that is not there."""
  if records is not None:
    (folder / "val.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
  c = toy.get_config("stages")
  data = dict(kind="jsonl", path=str(folder / "val.jsonl"))
  c.stages[-1].evals = (dict(name="val", kind="caption", data=data),)
  return c


@pytest.mark.parametrize(
  ("records", "said"),
  [
    (None, r"val.jsonl': No such file"),
    ([dict(image="gone.png", prefix="a", suffix="b")], "none of its first records .*gone.png"),
    ([dict(image="gone.png", prefix="a")], "val.jsonl:1: has no field 'suffix'"),
  ],
)
def test_what_the_last_evaluator_lacks_is_told_before_the_first_step(done, tmp_path, records, said):
  shutil.copy(done[0] / "tokenizer.model", tmp_path)
  with pytest.raises(ValueError, match=rf"^stages\[2\].evals\[0\].data \(high\): .*{said}"):
    train.run(scored(tmp_path, records), tmp_path)
  assert not (tmp_path / "metrics.jsonl").exists()


def test_sources_of_evaluators_are_opened_once(done, tmp_path, monkeypatch):
  class Says:
    def generate(self, images, prompts, **how):
      return ["b"] * len(prompts)

  opened, make = [], sources.make
  monkeypatch.setattr(sources, "make", lambda *args: opened.append(args) or make(*args))
  shutil.copy(done[0] / "tokenizer.model", tmp_path)
  Image.new("RGB", (9, 9)).save(tmp_path / "a.png")
  c = scored(tmp_path, [dict(image="a.png", prefix="a", suffix="b")])
  stage = stages.resolve(config.check(c), tmp_path)[-1]
  [evaluator] = evaluate.evaluators(stage, tmp_path)
  for _ in range(2):
    assert evaluate.run_one(Says(), evaluator)["val/exact"] == 1.0
  assert len(opened) == 1


def test_what_a_folder_without_a_run_is_told(tmp_path, capsys):
  code, said = told(capsys, "eval", tmp_path)
  assert code == 2 and "no workdir of a run: it has no config.json" in said


def test_wall_clock_checkpoints_are_agreed_on_by_vote(done, tmp_path):
  """every_seconds: the wish of a process travels with its batch to all the others."""
  made = toy.get_config()
  made.checkpoint.update(every_steps=0, every_seconds=0.001)
  made.stages[0].steps = 16
  shutil.copy(done[0] / "tokenizer.model", tmp_path)
  train.run(made, tmp_path)
  steps = sorted(
    int(p.name) for p in (tmp_path / "checkpoints" / "low").iterdir() if p.name.isdigit()
  )
  assert len(steps) >= 3 and steps[-1] == 16


def test_a_full_disk_is_told_and_the_run_goes_on(done, tmp_path, capsys, monkeypatch):
  """The failed step is named, checkpoints before it stay, and the next save succeeds."""
  plain = native.Checkpointer._write

  def full(self, step, *rest):
    if step == 12:
      raise OSError(28, "No space left on device")
    return plain(self, step, *rest)

  monkeypatch.setattr(native.Checkpointer, "_write", full)
  shutil.copy(done[0] / "tokenizer.model", tmp_path)
  train.run(toy.get_config(), tmp_path)
  said = [line for line in capsys.readouterr().err.splitlines() if "was not saved" in line]
  assert len(said) == 1
  assert "checkpoint 12" in said[0] and "No space left" in said[0] and "[6]" in said[0]
  steps = sorted(int(p.name) for p in (tmp_path / "checkpoints/low").iterdir() if p.name.isdigit())
  assert steps == [6, 18, 24]
