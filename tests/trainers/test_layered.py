"""Patterns over single layers of a stack: what trains, what stays, and the way back."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigvlm import build, config, generate, testing
from bigvlm.trainers import evaluate, layered, saved, stages, train
from bigvlm.utils import tree
from tests.reliability import toy

FLAT = {
  "a/blocks/g0/b0/w": np.arange(6.0).reshape(2, 3),
  "a/blocks/g0/b1/w": np.arange(6.0).reshape(2, 3) + 10,
  "a/blocks/g1/b0/w": np.full((1, 3), 7.0),
  "a/norm": np.ones(3),
}


def test_layers_are_numbered_through_periods_and_groups():
  apart = layered.cut(FLAT)
  assert list(apart) == [n for n in layered.names(FLAT)]
  first = {name: float(x[0]) for name, x in apart.items() if name != "a/norm"}
  assert first == {
    "a/blocks/0/w": 0.0,
    "a/blocks/1/w": 10.0,
    "a/blocks/2/w": 3.0,
    "a/blocks/3/w": 13.0,
    "a/blocks/4/w": 7.0,
  }
  back = layered.stack(apart, layered.layout(FLAT))
  assert back.keys() == FLAT.keys()
  for name, x in FLAT.items():
    np.testing.assert_array_equal(back[name], x)


def test_the_form_is_that_of_what_is_gone_over_to():
  apart = layered.cut(FLAT)
  assert layered.conform(FLAT, apart).keys() == apart.keys()
  assert layered.conform(apart, FLAT).keys() == FLAT.keys()
  assert layered.conform(FLAT, FLAT) is FLAT


def test_a_module_over_layers_apart_gives_the_same_numbers_and_gradients():
  cfg = testing.TINY_VLM | dict(decoder=testing.TINY_VLM["decoder"] | dict(windows=(4, 0), depth=3))
  module, batch = build.model(cfg), testing.prefix_lm_batch([3, 6, 5], [3, 2, 4])
  params = module.init(jax.random.key(0), batch)["params"]
  params = testing.shaken(params)
  flat = tree.flatten(params)
  wrapped = layered.Layered(module, layered.layout(flat))
  apart = tree.unflatten(layered.cut(flat))

  def loss(m):
    return lambda p: jnp.sum(jnp.square(m.apply({"params": p}, batch).logits))

  a, ga = jax.jit(jax.value_and_grad(loss(module)))(params)
  b, gb = jax.jit(jax.value_and_grad(loss(wrapped)))(apart)
  np.testing.assert_allclose(a, b, rtol=1e-6)
  stacked = layered.stack(tree.flatten(gb), wrapped.stacks)
  for name, g in tree.flatten(ga).items():
    np.testing.assert_allclose(stacked[name], g, rtol=1e-4, atol=1e-4)


def made(**last):
  """Two stages over towers of three layers: everything trains, then what `last` says."""
  c = toy.get_config("")
  first, second = toy.low(init=dict(source="fresh")), toy.low()
  first.name, first.steps = "all", 2
  second.name, second.steps = "last", 3
  for stage in (first, second):
    stage.schedule.update(kind="constant", warmup=0.0, groups=())
    stage.ema = 0.0
  second.lr_mults = second.weight_decay = ()
  second.update(last)
  c.stages = (first, second)
  for part in (c.model.decoder, c.model.encoders.image, c.model.text):
    part.depth = 3
  return config.check(c)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
  workdir = tmp_path_factory.mktemp("layered") / "run"
  c = made(
    train=("decoder/blocks/2/.*", "encoders/image/blocks/[12]/attn/q/.*"),
    lr_mults=(("encoders/image/blocks/1/.*", 0.0),),
  )
  train.run(c, workdir)
  return workdir


def test_only_the_named_layers_train_and_have_optimiser_state(run):
  before = evaluate.load(run, "all").params
  after = evaluate.load(run, "last").params
  old, new = tree.flatten(before), tree.flatten(after)
  assert old.keys() == new.keys()
  changed = {
    name
    for name, x in layered.cut(new).items()
    if not np.array_equal(np.asarray(x), np.asarray(layered.cut(old)[name]))
  }
  decoder = {n for n in layered.names(new) if n.startswith("decoder/blocks/2/")}
  assert changed == decoder | {
    n for n in layered.names(new) if n.startswith("encoders/image/blocks/2/attn/q/")
  }
  mesh = stages.build(*_stage(run, "last"), run).mesh
  held = saved.read(run, "last", mesh, ("params", "opt"))
  trained = {n.removeprefix("params/") for n in held if n.startswith("params/")}
  assert trained == decoder | {
    n for n in layered.names(new) if "image/blocks/1/attn/q" in n or "image/blocks/2/attn/q" in n
  }
  moments = [n for n in held if n.startswith("opt/") and "blocks/" in n]
  assert moments and all("blocks/2/" in n or "blocks/1/" in n for n in moments)


def _stage(workdir, name):
  c, path, stage, _ = saved.locate(workdir, name)
  return c, stages.on_any_mesh(stage)


def test_a_model_of_such_a_stage_answers(run):
  model = evaluate.load(run, "last")
  assert "g0" in model.params["decoder"]["blocks"]
  generate.unstack(model.params)
  picture = np.zeros((16, 16, 3), np.uint8)
  assert isinstance(model.generate([picture], ["caption en"], max_new_tokens=2)[0], str)


def test_layers_that_are_scanned_cannot_be_named(run):
  c = made(train=("decoder/blocks/2/.*",))
  c.layers = "scan"
  with pytest.raises(
    ValueError, match=r"stages\[1\].*names single layers, which needs layers='loop'"
  ):
    stages.build(c, stages.resolve(c, run)[1], run)


def test_a_layer_that_is_not_there(run):
  c = made(train=("decoder/blocks/7/.*",))
  with pytest.raises(ValueError, match=r"'decoder/blocks/7/.\*' matches no parameter"):
    stages.build(c, stages.resolve(c, run)[1], run)
