"""Runs whose stages train low-rank adapters: what moves, what goes on, what comes out."""

import copy
import json

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

import bigvlm
from bigvlm import cli, lora
from bigvlm import config as config_lib
from bigvlm.configs import common
from bigvlm.hub import peft
from bigvlm.parallel import mesh as mesh_lib
from bigvlm.trainers import evaluate, saved, stages, starting, train
from bigvlm.utils import tree
from tests.reliability import toy

TARGETS = ("encoders/image/blocks/.*/attn/[qo]", "text/blocks/.*/mlp/up")
ADAPTER = dict(rank=3, alpha=6.0, targets=TARGETS, dropout=0.1)


def get_config(source):
  """From a checkpoint of others: a stage of adapters, and one that goes on with them."""
  loaded = bigvlm.load(source)
  image = dict(size=loaded.system.image_size, method="bilinear", antialias=True)
  shared = dict(
    data=toy.MIXTURE, batch_size=8, steps=3, lr=1e-2, objective=dict(kind="sigmoid"), lora=ADAPTER
  )
  plan = (
    common.stage(name="adapt", init=dict(source=str(source)), **shared),
    common.stage(name="more", **(shared | dict(lora=ADAPTER | dict(alpha=3.0, dropout=0.0)))),
  )
  return common.base(
    name="adapt",
    seed=1,
    model=loaded.system.model,
    processor=dict(
      kind="contrastive", image=image, tokenizer=toy.TOKENIZER, text_len=loaded.system.text_len
    ),
    prepare=dict(tokenizer=dict(data=toy.MIXTURE, examples=64, vocab_size=1536)),
    log=dict(every=2, tensorboard=False),
    stages=plan,
  )


@pytest.fixture(scope="module")
def run(tmp_path_factory):
  root = tmp_path_factory.mktemp("adapters")
  bigvlm.load("siglip:tiny,vocab=1536", init=None).save_hf(root / "source")
  config = config_lib.check(get_config(root / "source"))
  train.run(config, root / "run")
  return root / "source", root / "run", config


def tensors(workdir, stage, *groups):
  return saved.read(workdir, stage, mesh_lib.make(dict(data=1), jax.devices()[:1]), groups)


def test_adapters_alone_train_and_have_optimiser_state(run):
  source, workdir, _ = run
  start = tree.flatten(bigvlm.load(source).params)
  state = tensors(workdir, "adapt", "params", "frozen", "opt")
  trained = {n.removeprefix("params/") for n in state if n.startswith("params/")}
  assert {n.rsplit("/", 1)[-1] for n in trained} == {"lora_a", "lora_b"}
  assert {n.split("/", 2)[2] for n in state if n.startswith(("opt/mu/", "opt/nu/"))} == trained
  for name in trained:
    if name.endswith("lora_b"):
      assert np.abs(state[f"params/{name}"]).max() > 0, name
  for name, x in start.items():
    assert np.asarray(state[f"frozen/{name}"]).tobytes() == np.asarray(x).tobytes(), name


def test_the_next_stage_goes_on_with_them_at_its_own_scale(run):
  _, workdir, config = run
  plan = stages.resolve(config, workdir)
  old = tensors(workdir, "adapt", "params", "frozen")
  built = stages.build(config, plan[1], workdir)
  state = starting.start(config, built, plan[0], old)
  new = tree.flatten(state)
  for name, x in old.items():
    if not lora.is_constant(name):
      np.testing.assert_array_equal(new[name], x)
  scales = [np.asarray(x) for n, x in new.items() if n.endswith("lora_scale")]
  assert scales and all((x == 1.0).all() for x in scales)
  assert not any(n.endswith("lora_dropout") for n in new)


def changed(config, **fields):
  config = copy.deepcopy(config)
  second = {**config_lib.plain(config.stages[1]), **fields}
  config.stages = (config.stages[0], common.stage(**second))
  return config_lib.check(config)


def test_a_stage_without_adapters_must_drop_them(run):
  _, workdir, config = run
  init = config_lib.plain(config.stages[1].init)
  for drop, said in (((), "lora_a .* has no place here: init.drop it"), ((".*/lora_.*",), None)):
    other = changed(config, lora=dict(rank=0), init={**init, "drop": drop}, train=("text/.*",))
    first, second = (stages.build(other, s, workdir) for s in stages.resolve(other, workdir))
    if said:
      with pytest.raises(ValueError, match=said):
        starting.check_start(first, second)
    else:
      starting.check_start(first, second)


def test_adapters_of_some_layers_train_alone(run):
  _, workdir, config = run
  depth = bigvlm.load("siglip:tiny,vocab=1536", init=None).module.encoders["image"].depth
  pattern = f"encoders/image/blocks/{depth - 1}/.*/lora_[ab]"
  other = changed(config, train=(pattern,))
  built = stages.build(other, stages.resolve(other, workdir)[1], workdir)
  trained = tree.names(built.state.params)
  assert len(trained) == 4 and all(f"/blocks/{depth - 1}/" in n for n in trained)
  old = tensors(workdir, "adapt", "params", "frozen")
  state = starting.start(other, built, stages.resolve(other, workdir)[0], old)
  name = "encoders/image/blocks/g0/b0/attn/q/lora_a"
  for row in range(depth):
    apart = tree.flatten({**state.params, "frozen": state.frozen})
    where = name.replace("g0/b0", str(row))
    got = apart.get(where, apart.get(f"frozen/{where}"))
    np.testing.assert_array_equal(got, old[f"params/{name}"][row])


@pytest.mark.parametrize(
  ("adapter", "said"),
  [
    (
      dict(targets=("text/blocks/.*/attn/query",)),
      r"\[1\].lora.targets: the pattern .*query",
    ),
    (dict(rank=-1), r"stages\[1\].lora: the rank of an adapter is at least 1, not -1"),
    (dict(dropout=1.5), r"stages\[1\].lora: the dropout of an adapter"),
  ],
)
def test_bad_fields_are_named(run, adapter, said):
  _, workdir, config = run
  other = changed(config, lora={**config_lib.plain(config.stages[1].lora), **adapter})
  with pytest.raises(ValueError, match=said):
    stages.build(other, stages.resolve(other, workdir)[1], workdir)


def test_a_run_gives_its_adapter_and_a_merged_checkpoint(run, tmp_path):
  source, workdir, _ = run
  trained = evaluate.load(workdir)
  assert lora.modules(trained.params)
  assert cli.main(["convert", str(workdir), str(tmp_path / "merged")]) == 0
  assert cli.main(["convert", str(workdir), str(tmp_path / "adapter"), "--adapter"]) == 0
  merged, alone = bigvlm.load(tmp_path / "merged"), bigvlm.load(source)
  want, _ = lora.merge(trained.params)
  jax.tree.map(np.testing.assert_array_equal, merged.params, want)
  with_adapter = lora.load_peft(alone, tmp_path / "adapter")
  got = tree.flatten(with_adapter.params)
  for name, x in tree.flatten(trained.params).items():
    np.testing.assert_array_equal(got[name], x)
  said = json.loads((tmp_path / "adapter" / peft.CONFIG).read_text())
  assert (said["r"], said["lora_alpha"]) == (3, 3)
  assert said["base_model_name_or_path"] == str(source)
  names = load_file(tmp_path / "adapter" / peft.TENSORS)
  assert "base_model.model.text_model.encoder.layers.0.mlp.fc1.lora_B.weight" in names


def test_adapters_of_what_has_none(run, tmp_path, capsys):
  source, _, _ = run
  with pytest.raises(SystemExit, match="2"):
    cli.main(["convert", str(source), str(tmp_path / "out"), "--adapter"])
  assert "--adapter writes the adapters of a run" in capsys.readouterr().err
