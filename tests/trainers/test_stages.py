"""Stage records, what goes over from one stage to the next, and what bad records are told."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from bigvlm import config as config_lib
from bigvlm.layers import posemb
from bigvlm.trainers import prepare, stages, starting
from tests.reliability import toy


def toy_config(over=None):
  """The toy run of three stages, with fields changed: {"stages.low.lr": 1.0, ...}."""
  config = config_lib.check(toy.get_config("stages"))
  for path, value in (over or {}).items():
    node = config
    *parents, last = path.split(".")
    for name in parents:
      node = next(s for s in node if s.name == name) if isinstance(node, tuple) else node[name]
    node[last] = config_lib.from_json(json.dumps(value)) if isinstance(value, dict) else value
  return config


def plan(over=None):
  return stages.resolve(toy_config(over), None)


def shapes(**named):
  return {k.replace("__", "/"): jax.ShapeDtypeStruct(s, np.float32) for k, s in named.items()}


def test_stages_merge_over_the_config():
  pair, low, high = plan()
  assert (pair.model["kind"], low.model["kind"]) == ("two_tower", "vlm")
  assert low.model["encoders"] == pair.model["encoders"]
  assert (low.processor["image"]["size"], high.processor["image"]["size"]) == (16, 32)


def test_length_in_steps_examples_and_epochs():
  assert [s.steps for s in plan()] == [4, 24, 4]
  assert plan({"stages.low.steps": 0, "stages.low.examples": 40})[1].steps == 2
  # Two sources of 200 examples each: an epoch and a half in batches of 16.
  assert plan({"stages.low.steps": 0, "stages.low.epochs": 1.5})[1].steps == 38


@pytest.mark.parametrize(
  ("over", "said"),
  [
    ({"stages.low.examples": 10}, r"stages\[1\] \(low\): exactly one of steps, examples and epo"),
    ({"stages.low.steps": 0}, r"stages\[1\] \(low\): exactly one .* not none"),
    (
      {"stages.high.processor.image.size": 28},
      r"stages\[2\] \(high\): processor.image.size=28x28 is not a multiple of the patch 8",
    ),
    (
      {"stages.low.accumulate": 3},
      r"stages\[1\].accumulate=3 does not divide stages\[1\].batch_size",
    ),
  ],
)
def test_bad_records_are_named(over, said):
  with pytest.raises(ValueError, match=said):
    plan(over)


def carried(new, old, **init):
  low, high = plan()[1:]
  init = dict(dict(fresh=(), drop=(), resample="linear_corners"), **init)
  cfg = {**high.cfg, "init": init}
  return starting.carry(new, old, dataclasses.replace(high, cfg=cfg), low)


def test_parameters_go_over_by_name_and_position_tables_are_resampled():
  new = shapes(encoders__image__posemb=(1, 16, 8), a=(2, 3), b=(4,))
  old = shapes(encoders__image__posemb=(1, 4, 8), a=(2, 3), c=(5,))
  same, resampled = carried(new, old, fresh=("b",), drop=("c",))
  assert (same, resampled) == (["a"], ["encoders/image/posemb"])


def test_one_error_lists_all_that_does_not_fit():
  new = shapes(a=(2, 3), b=(4,), d=(1,))
  old = shapes(a=(2, 5), c=(5,), d=(1,))
  with pytest.raises(ValueError) as e:
    carried(new, old)
  for said in (
    r"stages[2] (high) cannot start from 'low'",
    "a is (2, 5) in 'low' and (2, 3) here",
    "b (4,) is not in stage 'low'",
    "c (5,) of 'low' has no place here: init.drop it",
  ):
    assert said in str(e.value)
  assert "d (1,)" not in str(e.value)


def test_a_fresh_pattern_makes_an_old_parameter_homeless():
  with pytest.raises(ValueError, match="a .* has no place here"):
    carried(shapes(a=(2,)), shapes(a=(2,)), fresh=("a",))
  carried(shapes(a=(2,)), shapes(a=(2,)), fresh=("a",), drop=("a",))


def test_a_part_is_what_matches_and_must_be_there_in_its_shape():
  new, other = shapes(a=(2,), b=(3,), c=(4,)), shapes(a=(2,), b=(5,), d=(6,))
  assert starting.take(new, other, ("a",), "parts").keys() == {"a"}
  for pattern, said in (
    ("[ab]", r"parts: b is \(5,\) there and \(3,\) here"),
    ("[ac]", r"parts has no c \(4,\)"),
    ("d", "parts: the pattern 'd' matches no"),
  ):
    with pytest.raises(ValueError, match=said):
      starting.take(new, other, (pattern,), "parts")


@pytest.mark.parametrize("field", ["fresh", "drop"])
def test_patterns_must_match_something(field):
  with pytest.raises(ValueError, match=rf"stages\[2\].init.{field}: the pattern 'x.*' matches no"):
    carried(shapes(a=(2,)), shapes(a=(2,)), **{field: ("x.*",)})


@pytest.fixture(scope="module")
def built(tmp_path_factory, devices):
  """The last two stages of the toy, built on two devices."""
  workdir = tmp_path_factory.mktemp("toy")
  config = toy_config({"mesh.data": 2})
  prepare.run(config, workdir)
  plans = stages.resolve(config, workdir)
  return config, [stages.build(config, s, workdir, devices[:2]) for s in plans[1:]]


def test_a_stage_starts_from_the_one_before(built):
  """Carried bit for bit, the position table resampled, frozen ones without optimiser state."""
  config, (low, high) = built
  first = starting.start(config, low)
  second = starting.start(config, high, low.stage, starting.tensors(first))
  a, b = (
    starting.state_lib.params_of(starting.tensors(first)),
    starting.state_lib.params_of(starting.tensors(second)),
  )
  assert a.keys() == b.keys()
  name = "encoders/image/posemb"
  for key in a:
    if key != name:
      np.testing.assert_array_equal(a[key], b[key], err_msg=key)
  want = posemb.resample(np.asarray(a[name]), (2, 2), (4, 4), "linear_corners")
  np.testing.assert_array_equal(b[name], want)
  assert set(stages.tree_lib.flatten(second.frozen)) == {
    k for k in b if k.startswith("encoders/") and k != name
  }
  assert int(second.step) == 0 and not second.ema


def test_the_same_seed_gives_the_same_start(built):
  config, (low, _) = built
  one, two = (starting.tensors(starting.start(config, low)) for _ in range(2))
  for key in one:
    np.testing.assert_array_equal(one[key], two[key], err_msg=key)


def test_the_optimiser_is_carried_when_asked_and_only_if_it_fits(built):
  config, (_, high) = built
  first = starting.start(config, high)
  tensors = {
    k: jax.numpy.full_like(x, 3) if k.startswith("opt/") else x
    for k, x in starting.tensors(first).items()
  }
  init = {**high.stage.cfg["init"], "optimizer": "carry"}
  again = dataclasses.replace(
    high, stage=dataclasses.replace(high.stage, cfg={**high.stage.cfg, "init": init})
  )
  got = starting.start(config, again, high.stage, tensors)
  assert all(np.all(np.asarray(x) == 3) for x in jax.tree.leaves(got.opt))
  fresh = starting.start(config, high, high.stage, tensors)
  assert not any(np.any(np.asarray(x)) for x in jax.tree.leaves(fresh.opt))
  without = {k: x for k, x in tensors.items() if not k.startswith("opt/")}
  with pytest.raises(ValueError, match="init.optimizer='carry': the stage before has no state"):
    starting.start(config, again, high.stage, without)


def test_sharding_rules_must_match_some_stage(built):
  config, both = built
  with config.unlocked():
    config.rules = (("decoder/.*/kernel", (None,)), ("text/.*", (None,)))
  with pytest.raises(
    ValueError, match=r"config.rules: the pattern 'text/.\*' matches no parameter"
  ):
    stages.check_rules(config, both)
  with config.unlocked():
    config.rules = ()


@pytest.mark.parametrize(
  ("over", "said"),
  [
    (
      {"stages.low.train": ("decodre/.*",)},
      r"stages\[1\].train: the pattern 'decodre/.\*'.*decoder",
    ),
    ({"stages.low.batch_size": 12}, r"stages\[1\].batch_size / accumulate=6 is not divisible by"),
    ({"mesh.data": 16}, r"mesh .*needs 16 devices, there are 8"),
    ({"stages.low.objective.kind": "prefixlm"}, "unknown objective 'prefixlm'; did you mean"),
    (
      {"stages.low.optimizer.kind": "adamw"},
      r"stages\[1\].optimizer.kind: unknown optimizer",
    ),
    ({"stages.low.lr_mults": (("x", 1.0),)}, r"stages\[1\].lr_mults: the pattern 'x' matches no"),
    (
      {"model.decoder.vocab": 400},
      r"stages\[1\] \(low\): model.decoder.vocab=400, but the tokenizer has \d+ ids",
    ),
  ],
)
def test_building_a_bad_stage_names_the_field(built, tmp_path, over, said):
  config = toy_config(over)
  prepare.run(config, tmp_path)
  with pytest.raises(ValueError, match=said):
    stages.build(config, stages.resolve(config, tmp_path)[1], tmp_path)
