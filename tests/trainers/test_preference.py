"""Stages of pairs: what the reference is, how they learn, resume, and what records must have."""

import json
import os
import signal

import jax
import numpy as np
import pytest

from bigvlm import config as config_lib
from bigvlm.configs import common
from bigvlm.data import loader, mixture, sources
from bigvlm.parallel import mesh as mesh_lib
from bigvlm.processing import pairs, processor
from bigvlm.processing.image import BadExample
from bigvlm.trainers import evaluate, feed, launch, saved, stages, starting, train
from bigvlm.utils import tree
from tests.reliability import toy

SOURCE = dict(
  toy.SOURCE,
  name="caption",
  tasks=dict(caption=1.0),
  ops=(dict(op="template", pattern="no {suffix}", to="rejected"),),
)
MPO = dict(kind="dpo", preference=0.8, quality=0.2, generation=1.0)
LORA = dict(rank=2, alpha=4.0, targets=("decoder/.*/attn/[qv]",))


def get_config(objective=MPO, **over):
  """A stage of answers and one of pairs, on four devices."""
  shared = dict(data=dict(sources=(SOURCE,)), batch_size=8, lr=1e-2, steps=2)
  shared |= dict(schedule=dict(kind="constant", warmup=0.0))
  tuned = dict(steps=4, accumulate=2, objective=objective, train=("(decoder|connector)/.*",))
  return config_lib.check(
    common.base(
      name="preference",
      model=dict(toy.model(dropout=0.0), kind="vlm"),
      processor=toy.LM,
      mesh=dict(data=2, fsdp=2, tensor=1),
      checkpoint=dict(every_steps=0, every_seconds=0.0, keep=9, verify="full"),
      log=dict(every=1, tensorboard=False),
      prepare=dict(tokenizer=dict(data=dict(sources=(SOURCE,)), examples=64, vocab_size=1536)),
      stages=(
        common.stage(name="answers", init=dict(source="fresh"), **shared),
        common.stage(name="pairs", **(shared | tuned | over)),
      ),
    )
  )


@pytest.fixture(scope="module")
def done(tmp_path_factory):
  workdir = tmp_path_factory.mktemp("straight")
  train.run(get_config(), workdir)
  return workdir


def last(workdir, stage):
  """Tensors of a stage's last state on one device."""
  mesh = mesh_lib.make(dict(data=1), jax.devices()[:1])
  found = saved.read(workdir, stage, mesh, ("params", "frozen", "reference", "running"))
  return {name: np.asarray(x) for name, x in found.items()}


def losses(workdir):
  lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
  return [line["train/loss"] for line in lines if line["stage"] == "pairs"]


def test_the_reference_is_where_the_stage_started(done):
  before, after = last(done, "answers"), last(done, "pairs")
  assert not any(name.startswith(("reference/", "running/")) for name in before)
  trained = {n.partition("/")[2] for n in after if n.startswith("params/")}
  assert {n.partition("/")[2] for n in after if n.startswith("reference/")} == trained
  for name in trained:
    then = before[f"params/{name}"].tobytes()
    assert after[f"reference/{name}"].tobytes() == then
    assert after[f"params/{name}"].tobytes() != then, name
  # Two steps' sums would start anew with each log line; these are of the stage.
  assert [after[f"running/{name}"][1] for name in ("chosen", "rejected")] == [32, 32]


def test_stopped_and_gone_on_it_ends_the_same(done, tmp_path, monkeypatch):
  plain = feed.Feed.__next__

  def told(self):
    fed = plain(self)
    if fed.position == 3:  # Of the second stage: the first has two.
      os.kill(os.getpid(), signal.SIGTERM)
    return fed

  with monkeypatch.context() as patch:
    patch.setattr(feed.Feed, "__next__", told)
    with pytest.raises(launch.Preempted) as left:
      train.run(get_config(), tmp_path)
  assert (left.value.stage, left.value.step) == ("pairs", 3)
  train.run(get_config(), tmp_path)
  straight, resumed = last(done, "pairs"), last(tmp_path, "pairs")
  assert straight.keys() == resumed.keys()
  assert all(straight[name].tobytes() == resumed[name].tobytes() for name in straight)
  assert losses(tmp_path) == losses(done)


def batch_of(built, count):
  """The first `count` examples as global arrays."""
  rows = mixture.make(dict(sources=(SOURCE,)))
  made = loader.train_loader(rows, built.processor, batch_size=count, seed=0, threads=0)
  arrays = dict(next(made))
  arrays.pop("ids")
  arrays["vote"] = np.zeros(count, np.int32)
  return mesh_lib.put_global(arrays, built.mesh)


@pytest.mark.parametrize("over", [{}, dict(lora=LORA, train=(".*",))])
def test_pairs_of_one_batch_are_told_apart(done, over):
  """DPO alone: the loss is log 2 at first and halves, accuracy goes to 1."""
  config = get_config(dict(kind="dpo", beta=0.5), **over)
  plan = stages.resolve(config, done)
  built = stages.build(config, plan[1], done)
  state = starting.start(config, built, plan[0], last(done, "answers"))
  reference = {n: np.asarray(x).tobytes() for n, x in tree.flatten(state.reference).items()}
  assert reference.keys() == tree.flatten(state.params).keys()
  assert all(("lora" in name) == bool(over) for name in reference)
  arrays, seen = batch_of(built, 8), []
  for _ in range(40):
    state, out = built.step(state, arrays)
    seen.append({k: float(v[0] / v[1]) for k, v in out["metrics"].items()})
  assert seen[0]["loss"] == pytest.approx(np.log(2), abs=1e-5)
  assert seen[0]["margin"] == pytest.approx(0, abs=1e-5)
  assert seen[-1]["loss"] < seen[0]["loss"] / 2
  assert seen[-1]["accuracy"] == 1 and seen[-1]["margin"] > 0.5
  assert {n: np.asarray(x).tobytes() for n, x in tree.flatten(state.reference).items()} == reference


def test_evaluation_sees_single_examples(done):
  model = evaluate.load(done)
  image = np.zeros((16, 16, 3), np.uint8)
  assert len(model.score([image] * 2, ["caption en"] * 2, ["7", "no 7"])) == 2


def test_pairs_are_not_packed(done):
  config = get_config(pack=dict(count=2, length=64))
  with pytest.raises(ValueError, match=r"stages\[1\].pack.count must be 1: .* rows of pairs"):
    stages.build(config, stages.resolve(config, done)[1], done)


class Noise(processor.Processor):
  """A processor that draws a number, and gives the answer's length."""

  random = True

  def row(self, example, rng):
    values = dict(noise=rng.random(), length=len(example["suffix"]), bad=0)
    return {k: np.asarray(v) for k, v in values.items()}, len(example["suffix"]) > 3


def test_a_row_holds_both_answers_with_one_randomness():
  made = pairs.Pairs(Noise())
  row, cut = made.row(dict(prefix="q", suffix="ab", rejected="abcd"), np.random.default_rng(0))
  assert row["length"].tolist() == [2, 4] and row["bad"].shape == () and cut
  assert row["noise"][0] == row["noise"][1] == np.random.default_rng(0).random()
  flat = pairs.apart({k: np.stack([v, v + 1]) for k, v in row.items()})
  assert flat["length"].tolist() == [2, 4, 3, 5] and flat["bad"].tolist() == [0, 1]


def test_a_record_without_a_rejected_answer_is_named(tmp_path):
  path = tmp_path / "a.jsonl"
  record = dict(prefix="q", suffix="yes")
  path.write_text("\n".join(json.dumps(r) for r in (record | dict(rejected="no"), record)) + "\n")
  source = sources.make(dict(kind="jsonl", path=str(path), fields=("prefix", "suffix")))
  made = pairs.Pairs(Noise())
  made(source[0], np.random.default_rng(0))
  with pytest.raises(BadExample, match=r"a.jsonl:2.* has no text in its field 'rejected'"):
    made(source[1], np.random.default_rng(0))
  path.write_text(json.dumps(record) + "\n")
  with pytest.raises(ValueError, match=r"a.jsonl:1.* has no field 'rejected'"):
    sources.make(dict(kind="jsonl", path=str(path), fields=("prefix", "suffix", "rejected")))
