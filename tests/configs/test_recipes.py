"""Every recipe of configs/train, on the toy of its system: its stages run, freeze and learn."""

import json

import jax
import numpy as np
import pytest

import bigvlm
from bigvlm import config as config_lib
from bigvlm import lora
from bigvlm.data import sources
from bigvlm.parallel import mesh as mesh_lib
from bigvlm.trainers import saved, stages, starting, train
from bigvlm.utils import tree

RECIPES = [n for n in config_lib.shipped() if n.startswith("train/")]


def test_recipes_of_published_size_resolve_without_weights():
  for name in RECIPES:
    config = config_lib.load(name)
    assert config.model.source and config.processor.source == config.model.source
    assert all(s.steps or s.examples or s.epochs for s in config.stages), name


@pytest.mark.parametrize("name", RECIPES)
def test_stages_run_freeze_and_learn(name, tmp_path):
  config = config_lib.check(config_lib.load(f"{name}:tiny"))
  summary = train.run(config, tmp_path, summary=False)
  assert [s["name"] for s in summary["stages"]] == [s.name for s in config.stages]
  lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
  losses = [line["train/loss"] for line in lines]
  assert len(losses) == sum(s.steps for s in config.stages) and np.isfinite(losses).all()

  mesh = mesh_lib.make(dict(data=1), jax.devices()[:1])
  before = {n: np.asarray(x) for n, x in tree.flatten(bigvlm.load(tmp_path / "toy").params).items()}
  plan = stages.resolve(config, tmp_path)
  for stage in plan:
    left = saved.read(tmp_path, stage.name, mesh, ("params", "frozen"))
    after = {n.partition("/")[2]: np.asarray(x) for n, x in left.items()}
    frozen = {n.partition("/")[2] for n in left if n.startswith("frozen/")} & before.keys()
    assert after.keys() - before.keys() == {n for n in after if lora.is_leaf(n)} - before.keys()
    assert before.keys() <= after.keys()
    for n in frozen:
      assert after[n].tobytes() == before[n].tobytes(), f"{stage.name}: {n} moved"
    moved = {n for n in after if n not in before or after[n].tobytes() != before[n].tobytes()}
    assert moved and not moved & frozen
    before = after

  # One batch again and again, in the last stage.
  built = stages.build(config, plan[-1], tmp_path)
  state = starting.start(config, built, plan[-1], left)
  source = sources.make(dict(config.stages[0].data.sources[0]))
  rng = np.random.default_rng(0)
  rows = [built.processor(source[n], rng) for n in range(plan[-1].cfg["batch_size"])]
  # Text alone has the same arrays: a step has one structure.
  bare = built.processor(dict(id="bare", prefix="hello", suffix="yes"), rng)
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
