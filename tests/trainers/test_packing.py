"""Rows of several examples: the loss and the gradients of the same examples one by one."""

import copy

import jax
import numpy as np
import pytest

from bigvlm import config as config_lib
from bigvlm.configs import common
from bigvlm.data import loader as loaders
from bigvlm.data import mixture, sources
from bigvlm.hub import load, toys
from bigvlm.trainers import stages, step
from bigvlm.utils import tree

WORDS = ("a", "what is it", "is it red or blue?", "x y z")


def examples(count):
  rng = np.random.default_rng(5)
  sizes = [(20 + 9 * (n % 3), 31, 3) for n in range(count)]
  return [
    dict(image=rng.integers(0, 255, size, np.uint8), prefix=WORDS[n % 4], suffix=f"answer {n}")
    for n, size in enumerate(sizes)
  ]


def get_config(source, lengths, **pack):
  text_len, media_len = lengths
  found = common.base(
    name="packed",
    model=dict(kind="checkpoint", source=str(source)),
    processor=dict(
      kind="checkpoint",
      source=str(source),
      text_len=text_len,
      media_len=media_len,
      read_len=16,
    ),
    mesh=dict(data=1),
    stages=(
      common.stage(
        name="one",
        steps=1,
        batch_size=1,
        data=dict(sources=(dict(kind="memory", examples=examples(4)),)),
        objective=dict(kind="prefix_lm", normalize="token"),
        pack=pack,
      ),
    ),
  )
  return config_lib.check(found)


# Tiles with line ends, packed patches with rotary axes, cross-attention.
SYSTEMS = (("llava_next", 160, 6), ("qwen2_vl", 96, 128), ("mllama", 64, 4))


@pytest.mark.parametrize(("name", *("text_len", "media_len")), SYSTEMS)
def test_loss_and_gradients_are_those_of_the_examples_apart(name, text_len, media_len, tmp_path):
  source = toys.write(name, tmp_path / "toy")
  config = get_config(source, (text_len, media_len), count=3, length=2 * text_len)
  built = stages.build(config, stages.resolve(config, tmp_path)[0], tmp_path)
  rng = np.random.default_rng(0)
  rows = [built.processor(example, rng) for example in examples(3)]
  packed, left = built.processor.join(rows)
  assert left == 0 and (packed["segment"] > 0).sum() == sum((r["segment"] > 0).sum() for r in rows)
  assert {k: v.shape for k, v in packed.items()} == {
    k: shape for k, (shape, _) in built.processor.spec().items()
  }
  params = load.load(source).params
  loss = jax.value_and_grad(step.make_loss(built.module, built.objective), has_aux=True)
  apart = {k: np.stack([row[k] for row in rows]) for k in rows[0]}
  (a, _), da = jax.jit(loss)(params, {}, apart, jax.random.key(0))
  (b, _), db = jax.jit(loss)(params, {}, {k: v[None] for k, v in packed.items()}, jax.random.key(0))
  np.testing.assert_allclose(a, b, rtol=1e-6)
  for (path, x), y in zip(tree.flatten(da).items(), tree.flatten(db).values(), strict=True):
    assert np.abs(x - y).max() <= 2e-6 + 2e-5 * np.abs(x).max(), path


def test_rows_of_several_are_the_same_for_any_number_of_hosts(tmp_path):
  source = toys.write("llava", tmp_path / "toy")
  config = get_config(source, (64, 1), count=2, length=100)
  processor = stages.build(config, stages.resolve(config, tmp_path)[0], tmp_path).processor
  broken = dict(image=b"no picture", prefix="a", suffix="b")
  mixed = mixture.Mixture([sources.make(dict(kind="memory", examples=[*examples(6), broken]))])

  def batch(index, count):
    kind = dict(batch_size=4, seed=3, process_index=index, process_count=count, threads=0)
    made = loaders.train_loader(mixed, processor, bad_records=dict(max_rate=1.0), **kind)
    return next(made), made.counters

  whole, counters = batch(0, 1)
  halves = [batch(i, 2)[0] for i in range(2)]
  for key, x in whole.items():
    np.testing.assert_array_equal(x[0::2], halves[0][key])
    np.testing.assert_array_equal(x[1::2], halves[1][key])
  # Eight draws of seven records: the broken one came once or twice, and left no trace.
  assert 1 <= sum(counters["bad"].values()) <= 2
  assert (whole["segment"].max(axis=1) <= 2).all() and (whole["bad"] == 0).all()


def test_what_does_not_fit_is_left_out_and_counted(tmp_path):
  source = toys.write("llava", tmp_path / "toy")
  config = get_config(source, (64, 1), count=3, length=64)
  processor = stages.build(config, stages.resolve(config, tmp_path)[0], tmp_path).processor
  rows = [processor(example, np.random.default_rng(0)) for example in examples(3)]
  packed, left = copy.deepcopy(processor).join(rows)  # As a worker process has it.
  fits = np.cumsum([(row["segment"] > 0).sum() for row in rows]) <= 64
  assert left == (~fits).sum() > 0
  assert packed["weights"].sum() == sum(
    row["weights"].sum() for row, ok in zip(rows, fits, strict=True) if ok
  )


@pytest.mark.parametrize(
  ("change", "words"),
  [
    (dict(objective=dict(kind="prefix_lm", normalize="example")), "normalize='token'"),
    (dict(pack=dict(count=2, length=32)), r"pack.length=32 must lie between one example, 64"),
  ],
)
def test_what_cannot_be_packed_is_refused(change, words, tmp_path):
  source = toys.write("llava", tmp_path / "toy")
  config = get_config(source, (64, 1), count=2, length=100)
  for key, value in change.items():
    config.stages[0][key] = value
  with pytest.raises(ValueError, match=words):
    stages.build(config, stages.resolve(config, tmp_path)[0], tmp_path)
