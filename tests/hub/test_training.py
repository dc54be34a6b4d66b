"""Any checkpoint trained on records of one's own, and written back in its form."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file

import bigvlm
from bigvlm import cli, types
from bigvlm.hub import toys, training
from bigvlm.processing.image import BadExample


@pytest.fixture(scope="module")
def records(tmp_path_factory):
  folder = tmp_path_factory.mktemp("records")
  rng = np.random.default_rng(0)
  rows = []
  for n in range(4):
    Image.fromarray(rng.integers(0, 255, (30 + n, 40, 3), np.uint8)).save(folder / f"{n}.png")
    rows.append(dict(image=f"{n}.png", prefix="what?", suffix=("red", "blue")[n % 2]))
  (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
  return folder


def test_finetune_trains_and_convert_gives_the_checkpoints_form(records, tmp_path):
  source, run, out = tmp_path / "source", tmp_path / "run", tmp_path / "out"
  toys.write("llava", source)
  data = records / "train.jsonl"
  spec = f"finetune:source={source},data={data},val={data},text_len=64,read_len=8,lr=0.01,tiny"
  assert cli.main(["train", spec, f"--workdir={run}", "--config.mesh.data=1"]) == 0
  assert cli.main(["convert", str(run), str(out)]) == 0
  before, after = (load_file(f / "model.safetensors") for f in (source, out))
  assert before.keys() == after.keys()
  for name, x in before.items():
    same = x.tobytes() == after[name].tobytes()
    assert same == name.startswith("vision_tower."), name  # The image tower was frozen.
  assert (out / "tokenizer.json").read_bytes() == (source / "tokenizer.json").read_bytes()
  answers = [bigvlm.load(d).generate([_picture()], ["what?"], max_new_tokens=3) for d in (run, out)]
  assert answers[0] == answers[1]


def _picture():
  return np.full((30, 40, 3), 90, np.uint8)


def test_rows_are_what_the_model_reads(tmp_path):
  source = toys.write("llava", tmp_path / "toy")
  made = training.make(dict(source=str(source), text_len=64, read_len=8))
  row = made(dict(image=_picture(), prefix="what?", suffix="red"), np.random.default_rng(0))
  ids = [*made.tokenizer.encode("red", special=False)[0], made.tokenizer.eos]
  assert row["labels"][row["weights"] > 0].tolist() == ids
  model = bigvlm.load(source)
  wanted = model.score([_picture()], ["what?"], ["red"])
  api = bigvlm.api.Model(model.config, model.module, model.params, made, model.mesh)
  np.testing.assert_allclose(api.score([_picture()], ["what?"], ["red"]), wanted, rtol=1e-5)


@pytest.mark.parametrize(
  ("change", "words"),
  [
    (dict(suffix=None), "no text in its field 'suffix'"),
    (dict(prefix="word " * 40), "tokens, processor.text_len is 64"),
    (dict(suffix="a long answer"), "takes 16 places, but processor.read_len is 8"),
    (dict(image=[np.zeros((9, 9, 3), np.uint8)] * 2), "takes 2 places, but processor.media_len"),
    (dict(image=b"none"), "image"),
  ],
)
def test_bad_records_name_what_is_wrong(change, words, tmp_path):
  made = training.make(
    dict(source=str(toys.write("llava", tmp_path / "toy")), text_len=64, read_len=8)
  )
  example = dict(id="mine:7", image=_picture(), prefix="what?", suffix="red") | change
  with pytest.raises(BadExample, match=words) as caught:
    made.row(example, np.random.default_rng(0))
  assert caught.value.record == "mine:7"


def test_a_source_without_a_processor_is_refused(tmp_path):
  source = toys.write("llava", tmp_path / "toy")
  (source / "tokenizer.json").unlink()
  with pytest.raises(ValueError, match="no tokenizer files"):
    training.make(dict(source=str(source)))


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
  """Rows of a model that matches pictures to texts, of 12 tokens."""
  source = toys.write("blip2_retrieval", tmp_path_factory.mktemp("pairs") / "toy")
  return training.make(dict(source=str(source), text_len=12))


def test_rows_of_pairs_are_what_is_matched_and_what_is_written(pairs):
  row, cut = pairs.row(dict(image=_picture(), prefix="a", suffix="red"), None)
  find = pairs.tokenizer.id
  ids = [find(t) for t in ("<s>", "a", "\u0120", "r", "e", "d")]
  blank = [find("<pad>")] * 6
  assert not cut and row["tokens"].tolist() == ids + blank
  assert row["target_tokens"].tolist() == [find("[DEC]"), *ids[1:], *blank]
  assert row["labels"][:5].tolist() == ids[1:] and row["target_read"].tolist() == [*range(11)]
  assert row["weights"].tolist() == [1] * 5 + [0] * 6
  assert row["segment"].tolist() == row["target_segment"].tolist() == [1] * 6 + [0] * 6
  assert {k: (v.shape, v.dtype) for k, v in row.items()} == pairs.spec()
  model = bigvlm.load(pairs.model.directory)
  given = model.processor(images=[_picture()], text=["a red"], padding="max_length", max_length=15)
  want = model.forward_hf(given)
  out = model.apply(types.to_batch({k: v[None] for k, v in row.items()}))
  np.testing.assert_allclose(out.heads["match"], want["logits_per_image"], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
  ("change", "words"),
  [
    (dict(image=[]), "has 0 pictures, not the one that its text is of"),
    (dict(suffix=None), "no text in its field 'suffix'"),
    (dict(image=b"none"), "image"),
  ],
)
def test_bad_pairs_name_what_is_wrong(change, words, pairs):
  example = dict(id="mine:7", image=_picture(), prefix="", suffix="red") | change
  with pytest.raises(BadExample, match=words) as caught:
    pairs(example, None)
  assert caught.value.record == "mine:7"


def test_a_text_of_a_pair_that_is_too_long_is_cut(pairs):
  row, cut = pairs.row(dict(image=_picture(), prefix="", suffix="a long answer"), None)
  assert cut and row["weights"].all() and not pairs.blank()["weights"].any()


def test_lengths_and_files_that_pairs_cannot_have_are_refused(pairs, tmp_path):
  source = str(pairs.model.directory)
  with pytest.raises(ValueError, match="text_len=513 is not 2 to 512"):
    training.make(dict(source=source, text_len=513))
  copied = shutil.copytree(source, tmp_path / "toy")
  config = json.loads((copied / "tokenizer_config.json").read_text())
  del config["bos_token"]
  (copied / "tokenizer_config.json").write_text(json.dumps(config))
  with pytest.raises(ValueError, match="names no bos_token"):
    training.make(dict(source=str(copied), text_len=12))
