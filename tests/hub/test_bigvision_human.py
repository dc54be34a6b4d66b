"""big_vision's `.npz` beside a tokeniser: what people call, against its rules done by hand."""

import io
import json
import pathlib
import shutil

import numpy as np
import pytest
import sentencepiece
from PIL import Image

import bigvlm
from bigvlm import cli
from bigvlm.processing import tf_resize
from bigvlm.processing import tokenizer as tokenizers
from bigvlm.processing.hub import bigvision

FOLDER = pathlib.Path(__file__).resolve().parents[1] / "fixtures" / "bigvision"
TEXTS = ["a cat on the Mat", "two dogs, running", "caption en", "answer en where is the cat?"]


@pytest.fixture(scope="module")
def model_file(tmp_path_factory):
  path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.model"
  tokenizers.train(TEXTS * 4, path, 350, model_type="bpe")
  return path


def checkpoint(folder, name, model_file, file="tokenizer.model", **config):
  """A copy of a fixture, its token table long enough for the tokeniser beside it."""
  folder.mkdir()
  tensors = dict(np.load(FOLDER / name / "model.npz"))
  rows = np.random.default_rng(0).normal(0, 0.5, (350, 1 << 10)).astype(np.float32)
  if name in ("siglip", "paligemma"):  # A square of 3 x 3 patches.
    table = tensors["params/img/pos_embedding"]
    tensors["params/img/pos_embedding"] = rows[:9, : table.shape[-1]][None]
  keys = [k for k in tensors if k.endswith(("Embed_0/embedding", "embedder/input_embedding"))]
  for key in keys:
    tensors[key] = rows[:, : tensors[key].shape[1]]
  cfg = json.loads((FOLDER / name / "config.json").read_text()) | config
  cfg["model"]["text" if "text" in cfg["model"] else "llm"]["vocab_size"] = 350
  np.savez(folder / "model.npz", **tensors)
  (folder / "config.json").write_text(json.dumps(cfg))
  if model_file is not None:
    shutil.copy(model_file, folder / file)
  return folder


def pictures():
  """Two of odd sizes: colours as an array, grey as PNG bytes."""
  rng = np.random.default_rng(1)
  rgb = rng.integers(0, 256, (37, 53, 3)).astype(np.uint8)
  grey, file = rng.integers(0, 256, (20, 31)).astype(np.uint8), io.BytesIO()
  Image.fromarray(grey).save(file, "png")
  return [rgb, file.getvalue()], [rgb, np.repeat(grey[..., None], 3, axis=-1)]


def resized(pixels, side, antialias):
  x = tf_resize.resize_as(pixels, (side, side), antialias).astype(np.float32)
  return x / np.float32(127.5) - 1


@pytest.mark.parametrize(("tokenizer", "pad", "res"), [("c4_en", 1, 24), ("gemma", 0, 28)])
def test_siglips_inputs_are_big_visions(tmp_path, model_file, tokenizer, pad, res):
  files = {"c4_en": "sentencepiece.model", "gemma": "vocab.model"}
  folder = checkpoint(
    tmp_path / "m", "siglip", model_file, files[tokenizer], tokenizer=tokenizer, res=res
  )
  model = bigvlm.load(folder)
  given, arrays = pictures()
  texts = ["É CAT", "cat " * 40, ""]
  found = model.processor(images=given, text=texts)
  length = model.module.text.length
  want = np.stack([resized(x, res, False) for x in arrays])  # Three patches of 8 and a rest.
  np.testing.assert_allclose(found["image"], want, atol=1e-6)
  sp = sentencepiece.SentencePieceProcessor(model_file=str(model_file))
  for text, row in zip(["É cat", "cat " * 40, ""], found["text"], strict=True):
    ids = [*sp.encode(text), 1]  # Only ASCII letters have become lower-case.
    ids = [*ids[: length - 1], 1] if len(ids) >= length else ids + [pad] * (length - len(ids))
    assert row.tolist() == ids
  out = model.forward_hf(found)
  np.testing.assert_allclose(model.embed_image(given), out["image_embeds"], rtol=1e-5)
  np.testing.assert_allclose(model.embed_text(texts), out["text_embeds"], rtol=1e-5)
  assert np.abs(out["text_embeds"][0] - out["text_embeds"][1]).max() > 1e-3


@pytest.fixture(scope="module")
def paligemma(tmp_path_factory, model_file):
  return bigvlm.load(checkpoint(tmp_path_factory.mktemp("p") / "m", "paligemma", model_file))


def test_paligemmas_inputs_are_big_visions(paligemma, model_file):
  given, arrays = pictures()
  found = paligemma.processor(images=given, text=["caption en", "a Cat"], suffix=["dogs", "two"])
  want = np.stack([resized(x, paligemma.system.image_size[0], True) for x in arrays])
  np.testing.assert_allclose(found["image"], want, atol=1e-6)
  sp = sentencepiece.SentencePieceProcessor(model_file=str(model_file))
  rows = []
  for text, suffix in (("caption en", "dogs"), ("a Cat", "two")):
    prefix = [2, *sp.encode(text), *sp.encode("\n")]
    rows.append((prefix, [*sp.encode(suffix), 1]))
  length = max(len(a) + len(b) for a, b in rows)
  for n, (a, b) in enumerate(rows):
    left = length - len(a) - len(b)
    assert found["text"][n].tolist() == a + b + [0] * left
    assert found["mask_ar"][n].tolist() == [0] * len(a) + [1] * (len(b) + left)
    assert found["input_mask"][n].tolist() == [1] * (len(a) + len(b)) + [0] * left
    assert found["mask_loss"][n].tolist() == [0] * len(a) + [1] * len(b) + [0] * left
  two = paligemma.processor(images=[given], text=["caption en"])
  assert two["image"].shape == (1, 2, *found["image"].shape[1:]) and "mask_loss" not in two
  with pytest.raises(ValueError, match=r"text\[1\] has 1 images, but text\[0\] has 2"):
    paligemma.processor(images=[given, given[:1]], text=["a", "b"])


def test_answers_and_scores(paligemma):
  given = pictures()[0]
  prompts = ["caption en", "answer en where is the cat? two dogs, running on the Mat"]
  answers = paligemma.generate(given, prompts, max_new_tokens=5)
  inputs = paligemma.processor(images=given, text=prompts, pad_to_multiple_of=32)
  ids = paligemma.generate_hf(inputs, max_new_tokens=5)
  assert answers == [paligemma.processor.decode(row) for row in ids] and all(answers)
  how = dict(max_new_tokens=5, beams=3)
  found = paligemma.answers(given, prompts, **how)
  assert paligemma.generate(given, prompts, **how) == [one[0].text for one in found] != answers
  inputs = paligemma.processor(images=given, text=prompts, suffix=["dogs", "two"])
  logits = paligemma.forward_hf(inputs)["logits"].astype(np.float64)
  logp = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
  want = []
  for n in range(2):
    at = np.flatnonzero(inputs["mask_loss"][n])
    want.append(logp[n, at - 1, inputs["text"][n, at]].sum())
  np.testing.assert_allclose(paligemma.score(given, prompts, ["dogs", "two"]), want, rtol=1e-5)


def test_predict_takes_such_a_directory(paligemma, tmp_path, capsys):
  Image.fromarray(pictures()[1][0]).save(tmp_path / "a.png")
  args = [str(paligemma.directory), "--image", str(tmp_path / "a.png"), "--prompt", "caption en"]
  assert cli.main(["predict", *args, "--max-new-tokens", "5"]) == 0
  want = paligemma.generate([tmp_path / "a.png"], ["caption en"], max_new_tokens=5)
  assert capsys.readouterr().out.strip() == want[0].strip()


def test_naflex(tmp_path, model_file):
  model = bigvlm.load(checkpoint(tmp_path / "m", "siglip2_naflex", model_file))
  image = pictures()[1][0]
  found = model.processor(images=[image], text=["a cat"], max_num_patches=20)
  patch = model.module.encoders["image"].patch
  size = bigvision.sequence_size((37, 53), patch, 20)
  h, w = (side // patch for side in size)
  assert 12 <= h * w <= 20 and found["ptype"].sum() == h * w
  pixels = tf_resize.resize(image / np.float32(127.5) - 1, size, antialias=True)
  at = 1 * w + 2  # Second row, third column.
  part = pixels[patch : 2 * patch, 2 * patch : 3 * patch].reshape(-1)
  np.testing.assert_allclose(found["patches"][0, at], part, atol=1e-5)
  assert (found["yabs"][0, at], found["xabs"][0, at]) == (1, 2)
  assert found["text"][0, -1] == 0  # SigLIP 2 pads as Gemma does.
  out = model.forward_hf(found)
  assert np.isfinite(out["logits_per_image"]).all()


def test_the_size_that_naflex_chooses_is_the_published_one():
  assert bigvision.sequence_size((480, 640), 16, 256) == (224, 288)
  assert bigvision.sequence_size((1, 4000), 16, 16) == (16, 256)


def test_what_is_lacking_is_told(tmp_path, model_file):
  bare = bigvlm.load(checkpoint(tmp_path / "bare", "siglip", None))
  assert bare.processor is None
  with pytest.raises(ValueError, match="embed_text needs a processor, but .*bare has no tokenizer"):
    bare.embed_text(["a"])
  several = checkpoint(tmp_path / "several", "siglip", model_file, "a.model")
  shutil.copy(model_file, several / "b.model")
  with pytest.raises(ValueError, match=r"several tokenisers \(a.model, b.model\)"):
    bigvlm.load(several).embed_text(["a"])
  text = bigvlm.load(checkpoint(tmp_path / "text", "siglip", model_file))
  with pytest.raises(ValueError, match="generate is for .*; this is a 'dual' model"):
    text.generate(pictures()[0], ["a", "b"])
  assert bigvision.wanted(32_000).endswith("/cc_en.32000/sentencepiece.model)")


def test_a_vit_alone_embeds_pictures():
  model = bigvlm.load(FOLDER / "vit_gap")
  given, arrays = pictures()
  image = np.stack([resized(x, model.system.image_size[0], False) for x in arrays])
  want = model.forward_hf({"image": image})["pre_logits"]
  want = want / np.linalg.norm(want, axis=1, keepdims=True)
  np.testing.assert_allclose(model.embed_image(given), want, rtol=1e-5, atol=1e-6)
