"""What people call: answers, scores and embeddings of whole tiny checkpoints (recorded)."""

import json
import pathlib
import shutil

import jax
import numpy as np
import pytest
from PIL import Image

import bigvlm
from bigvlm import cli
from tests.parity import processors_check

ROOT = pathlib.Path(__file__).resolve().parents[1] / "fixtures" / "processors"


def pictures():
  return {f.stem: Image.open(f) for f in (ROOT / "pictures").glob("*.png")}


@pytest.fixture(scope="module")
def paligemma():
  return bigvlm.load(ROOT / "human_paligemma")


def videos():
  with np.load(ROOT / "videos.npz", allow_pickle=False) as f:
    return {k: f[k] for k in f.files}


@pytest.mark.parametrize("name", ["internvl", "paligemma", "siglip"])
def test_equals_the_reference(name):
  folder = ROOT / f"human_{name}"
  expected = json.loads((folder / "cases.json").read_text("utf-8"))
  assert processors_check.check_human(folder, expected, pictures(), videos()) == []


def test_a_batch_is_its_rows(paligemma):
  image, prompts = pictures()["rgb"], ["ocr", "answer en what is this the Park", "caption en"]
  answers = paligemma.generate([image] * 3, prompts, max_new_tokens=5)
  single = [paligemma.generate([image], [p], max_new_tokens=5)[0] for p in prompts]
  assert answers == single
  scores = paligemma.score([image] * 3, prompts, ["the", "cats", ""], batch_size=2)
  alone = paligemma.score([image], prompts[1:2], ["cats"])
  np.testing.assert_allclose(scores[1:2], alone, rtol=1e-5)


def test_a_score_is_what_the_logits_say(paligemma):
  image = pictures()["rgb"]
  given = paligemma.processor(images=[[image]], text=["ocr"], suffix=["the cats"])
  logits = paligemma.forward_hf(given)["logits"].astype(np.float64)[0]
  at = np.flatnonzero(given["labels"][0] != -100)
  logp = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
  found = paligemma.score([image], ["ocr"], ["the cats"])
  assert (
    found.dtype == np.float32 and given["input_ids"][0, -1] == paligemma.processor.tokenizer.eos
  )
  np.testing.assert_allclose(found, logp[at - 1, given["labels"][0, at]].sum(), rtol=1e-5)


def test_other_prompts_compile_nothing(paligemma):
  compiled = []

  def note(name, seconds, **_):
    if name.endswith("backend_compile_duration"):
      compiled.append(seconds)

  jax.monitoring.register_event_duration_secs_listener(note)
  image = pictures()["rgb"]
  counts = []
  for prompts, answers in (
    (["ocr", "caption en"], ["the", "cats"]),
    (["answer en the cats", "detect cats"], ["<loc0001>", "it's"]),
  ):
    paligemma.generate([image] * 2, prompts, max_new_tokens=3)
    paligemma.score([image] * 2, prompts, answers)
    counts.append(len(compiled))
  assert 0 < counts[0] == counts[1]


def test_two_images_in_a_prompt(paligemma):
  there = pictures()
  group = [there["rgb"], there["grey"]]
  a = paligemma.generate([group], ["caption en"], max_new_tokens=3)
  b = paligemma.generate([group], ["<image><image>caption en"], max_new_tokens=3)
  assert a == b
  with pytest.raises(ValueError, match=r"text\[0\] has 1 <image> marks, but images\[0\] has 2"):
    paligemma.generate([group], ["<image>caption en"], max_new_tokens=3)


def test_another_resolution_takes_more_tokens():
  larger = bigvlm.load(ROOT / "human_paligemma", res=24)
  image = pictures()["rgb"]
  given = larger.prompt_inputs([([image], "ocr")])
  assert given["pixel_values"].shape == (1, 3, 24, 24)
  assert (given["input_ids"] == larger.processor.tokenizer.id("<image>")).sum() == 16
  assert len(larger.generate([image], ["ocr"], max_new_tokens=2)) == 1


def test_without_files_there_is_one_clear_line(tmp_path):
  for name in ("config.json", "model.safetensors"):
    shutil.copy(ROOT / "human_siglip" / name, tmp_path / name)
  bare = bigvlm.load(tmp_path)
  assert bare.processor is None
  with pytest.raises(ValueError, match="embed_text needs a processor, but .* has no tokenizer"):
    bare.embed_text(["a"])


def test_calls_that_a_model_does_not_have(paligemma):
  with pytest.raises(ValueError, match="embed_text is for dual models; this is a 'vlm' model"):
    paligemma.embed_text(["a"])
  with pytest.raises(ValueError, match="1 images but 2 prompts"):
    paligemma.generate([pictures()["rgb"]], ["a", "b"])
  with pytest.raises(ValueError, match="prompts is one string"):
    paligemma.generate(None, "ocr")
  with pytest.raises(ValueError, match=r"prompts\[1\] is a int, not a string"):
    paligemma.generate([pictures()["rgb"]] * 2, ["ocr", 3])
  with pytest.raises(ValueError, match="max_new_tokens must be at least 1, not 0"):
    paligemma.generate([pictures()["rgb"]], ["ocr"], max_new_tokens=0)


def test_predict_takes_a_checkpoint(tmp_path, capsys):
  shutil.copy(ROOT / "pictures" / "wide.png", tmp_path)
  image, out = str(tmp_path / "wide.png"), tmp_path / "drawn.png"
  name = str(ROOT / "human_paligemma")
  given = ["--image", image, "--prompt", "detect cats ; the photo", "--max-new-tokens", "7"]
  assert cli.main(["predict", name, *given, "--out", str(out)]) == 0
  expected = json.loads((ROOT / "human_paligemma" / "cases.json").read_text("utf-8"))
  assert capsys.readouterr().out == expected["generate"][1][1] + "\n"
  assert Image.open(out).width > 0
  assert cli.main(["predict", str(ROOT / "human_siglip"), *given]) == 2
  assert "generate is for lm or vlm or encdec or memory models" in capsys.readouterr().err
