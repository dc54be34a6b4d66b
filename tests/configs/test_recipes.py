"""Every recipe of configs/train, on the toy of its system: its stages run, freeze and learn."""

import dataclasses
import json
import re

import jax
import numpy as np
import pytest

import bigvlm
from bigvlm import config as config_lib
from bigvlm import lora
from bigvlm.data import sources
from bigvlm.objectives import table
from bigvlm.parallel import mesh as mesh_lib
from bigvlm.trainers import finetuned, saved, schedule, stages, starting, train
from bigvlm.utils import tree

RECIPES = [n for n in config_lib.shipped() if n.startswith("train/")]


def test_recipes_of_published_size_resolve_without_weights():
  for name in RECIPES:
    config = config_lib.load(name)
    assert config.model.source and config.processor.source == config.model.source
    assert all(s.steps or s.examples or s.epochs for s in config.stages), name
    for stage in config.stages:
      schedule.groups(config_lib.plain(stage.schedule), stage.steps or 10_000)
      objective = table.make(config_lib.plain(stage.objective))
      fields = [config_lib.plain(source.get("fields", ())) for source in stage.data.sources]
      assert all(("rejected" in f) == getattr(objective, "pairs", False) for f in fields), name


def test_a_stage_that_others_have_run_is_left_out():
  config = config_lib.load("train/blip2:former=someone/model")
  assert [s.name for s in config.stages] == ["generate"]
  assert config.stages[0].init.parts[0][0] == "someone/model"


@pytest.mark.parametrize("name", RECIPES)
def test_stages_run_freeze_and_learn(name, tmp_path):
  config = config_lib.check(config_lib.load(f"{name}:tiny"))
  summary = train.run(config, tmp_path, summary=False)
  assert [s["name"] for s in summary["stages"]] == [s.name for s in config.stages]
  lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
  losses = [line["train/loss"] for line in lines]
  assert len(losses) == sum(s.steps for s in config.stages) and np.isfinite(losses).all()

  mesh = mesh_lib.make(dict(data=1), jax.devices()[:1])
  plan, after = stages.resolve(config, tmp_path), {}
  for stage in plan:
    init = stage.cfg["init"]
    before = _start(init["source"], after)
    for source, patterns in init["parts"]:
      part = _start(source, after)
      before |= {n: x for n, x in part.items() if n in before and _any(patterns, n)}
    left = saved.read(tmp_path, stage.name, mesh, ("params", "frozen"))
    after = {n.partition("/")[2]: np.asarray(x) for n, x in left.items()}
    frozen = {n.partition("/")[2] for n in left if n.startswith("frozen/")} & before.keys()
    added = {n for n in after if lora.is_leaf(n) or _any(init["fresh"], n)} - before.keys()
    assert after.keys() - before.keys() == added
    assert before.keys() <= after.keys()
    for n in frozen:
      assert after[n].tobytes() == before[n].tobytes(), f"{stage.name}: {n} moved"
    moved = {n for n in after if n not in before or after[n].tobytes() != before[n].tobytes()}
    assert moved and not moved & frozen
    if not all(map(lora.is_leaf, added)):
      # What training alone needs has no place in the checkpoint's form, all else has.
      back = finetuned.load(tmp_path / "checkpoints" / stage.name)
      assert tree.flatten(back.params).keys() == before.keys()
    # A stage whose loss comes again is left to the last one that has it.
    later = [s.cfg["objective"] for s in plan[stage.index + 1 :]]
    if stage.cfg["objective"] not in later:
      _learns(config, stage, tmp_path, left)


def _start(source, after):
  """Parameters of a checkpoint, or of the stage before."""
  if source == "previous":
    return dict(after)
  return {n: np.asarray(x) for n, x in tree.flatten(bigvlm.load(source).params).items()}


def _any(patterns, name):
  return any(re.fullmatch(pattern, name) for pattern in patterns)


def _learns(config, stage, workdir, left):
  """One batch again and again, from where the stage has ended."""
  init = {**stage.cfg["init"], "fresh": (), "drop": ()}
  stage = dataclasses.replace(stage, cfg={**stage.cfg, "init": init})
  built = stages.build(config, stage, workdir)
  state = starting.start(config, built, stage, left)
  source = sources.make(dict(config.stages[0].data.sources[0]))
  rng = np.random.default_rng(0)
  fields = {"id", "prefix", "suffix", "rejected"}
  if getattr(built.module, "encoders", {}):
    fields.add("image")  # Text models alone read none.
  examples = [source[n] for n in range(stage.cfg["batch_size"])]
  rows = [built.processor({k: e[k] for k in fields & e.keys()}, rng) for e in examples]
  if stage.model["kind"] != "matching":
    # Text alone has the same arrays: a step has one structure.
    bare = built.processor(dict(id="bare", prefix="hello", suffix="yes", rejected="no"), rng)
    assert {k: v.shape for k, v in bare.items()} == {k: v.shape for k, v in rows[0].items()}
  arrays = {k: np.stack([row[k] for row in rows]) for k in rows[0]}
  arrays["vote"] = np.zeros(len(rows), np.int32)
  arrays = mesh_lib.put_global(arrays, built.mesh)
  losses = []
  for _ in range(300):
    state, out = built.step(state, arrays)
    total, count = out["metrics"]["loss"]
    losses.append(float(total / count))
    if losses[-1] < losses[0] / 2:
      break
  assert losses[-1] < losses[0] / 2, losses
