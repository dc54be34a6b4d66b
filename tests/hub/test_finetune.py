"""From a checkpoint of others through a run of the trainer and back into its form."""

import json
import pathlib
import shutil

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

import bigvlm
from bigvlm import cli, config
from bigvlm.configs import common
from bigvlm.processing import tokenizer
from bigvlm.trainers import train

FOLDER = pathlib.Path(__file__).resolve().parent.parent / "fixtures" / "hub"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
  """A short run that starts from a directory as transformers has them, at twice its grid."""
  root = tmp_path_factory.mktemp("finetune")
  source = root / "source"
  bigvlm.load("siglip:tiny,vocab=1536", init=None).save_hf(source)
  (source / "tokenizer_config.json").write_text("{}")
  loaded = bigvlm.load(source)
  words = ["a red cat", "a blue dog", "the green house", "one old tree"] * 8
  tokenizer.train(words, root / "tokenizer.model", vocab_size=400)
  rng = np.random.default_rng(0)
  from PIL import Image

  lines = []
  for i in range(8):
    Image.fromarray(rng.integers(0, 256, (20, 20, 3), dtype=np.uint8)).save(root / f"{i}.png")
    lines.append(json.dumps({"image": f"{i}.png", "text": words[i]}))
  (root / "data.jsonl").write_text("\n".join(lines) + "\n")
  height, width = loaded.system.image_size
  c = common.base(name="finetune")
  c.model = loaded.system.model
  c.processor = dict(
    kind="contrastive",
    image=dict(size=(2 * height, 2 * width), method="bilinear", antialias=True),
    tokenizer=dict(kind="sentencepiece", path=str(root / "tokenizer.model")),
    text_len=loaded.system.text_len,
  )
  source_cfg = dict(kind="jsonl", path=str(root / "data.jsonl"), fields=("image", "text"))
  c.stages = (
    common.stage(
      name="tune",
      steps=2,
      batch_size=8,
      lr=1e-2,
      train=("encoders/.*", "t", "b"),
      data=dict(sources=(source_cfg,)),
      objective=dict(kind="sigmoid"),
      init=dict(source=str(source), resample="bicubic"),
    ),
  )
  workdir = root / "run"
  train.run(config.check(c), workdir)
  return source, workdir


def test_a_run_starts_from_the_checkpoint_and_goes_back_into_its_form(run, tmp_path):
  source, workdir = run
  assert cli.main(["convert", str(workdir), str(tmp_path / "out")]) == 0
  before, after = (load_file(f / "model.safetensors") for f in (source, tmp_path / "out"))
  assert before.keys() == after.keys()
  frozen = [k for k in before if k.startswith("text_model.")]
  assert len(frozen) > 20
  for name in frozen:
    assert before[name].tobytes() == after[name].tobytes(), name
  moved = "vision_model.encoder.layers.0.mlp.fc1.weight"
  assert not np.array_equal(before[moved], after[moved])
  assert (tmp_path / "out" / "tokenizer_config.json").is_file()
  table = "vision_model.embeddings.position_embedding.weight"
  assert after[table].shape[0] == 4 * before[table].shape[0]
  config_json = json.loads((tmp_path / "out" / "config.json").read_text())
  size = json.loads((source / "config.json").read_text())["vision_config"]["image_size"]
  doubled = [2 * n for n in size] if isinstance(size, list) else 2 * size
  assert config_json["vision_config"]["image_size"] == doubled


def test_what_was_written_answers_as_the_run_does(run, tmp_path):
  _, workdir = run
  assert cli.main(["convert", str(workdir), str(tmp_path / "out")]) == 0
  ours, again = bigvlm.load(workdir), bigvlm.load(tmp_path / "out")
  jax.tree.map(np.testing.assert_array_equal, ours.params, again.params)


def test_like_names_another_checkpoint_and_must_fit(run, tmp_path, capsys):
  _, workdir = run
  other = FOLDER / "paligemma-0"
  assert cli.main(["convert", str(workdir), str(tmp_path / "out"), "--like", str(other)]) == 2
  assert "tensor " in capsys.readouterr().err
  assert not (tmp_path / "out").exists()


def test_a_run_from_nothing_needs_like(tmp_path, workdir, capsys):
  source = tmp_path / "empty"
  (source / "checkpoints").mkdir(parents=True)
  assert cli.main(["convert", str(source), str(tmp_path / "out")]) == 2
  assert capsys.readouterr().err.count("\n") == 1


def test_the_workdir_says_what_it_started_from(run):
  source, workdir = run
  said = json.loads((workdir / "sources.json").read_text())
  assert said == {"tune": {"source": str(source), "revision": None}}


def test_a_checkpoint_of_the_hub_is_recorded_with_its_commit(run, tmp_path, monkeypatch):
  from bigvlm.hub import load as hub_load
  from bigvlm.trainers import saved, stages

  source, _ = run
  snapshot = tmp_path / "snapshots" / "0123abc"
  shutil.copytree(source, snapshot)
  monkeypatch.setattr(hub_load, "_fetch", lambda name: snapshot)
  cfg = config.check(config.from_json((run[1] / "config.json").read_text()))
  cfg.stages[0].init.source = "someone/model"
  built = stages.build(cfg, stages.resolve(cfg, tmp_path)[0], tmp_path)
  saved.before([], built, tmp_path)
  said = json.loads((tmp_path / "sources.json").read_text())
  assert said["tune"] == {"source": "someone/model", "revision": "0123abc"}
