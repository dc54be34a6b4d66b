"""Processors of checkpoints against what transformers made of the same files (recorded)."""

import json
import pathlib
import shutil

import numpy as np
import pytest
from PIL import Image

from bigvlm.processing.hub import build, chat, decoded, processors, spm
from tests.parity import processors_check

ROOT = pathlib.Path(__file__).resolve().parents[2] / "fixtures" / "processors"
NAMES = sorted(
  f.name
  for f in ROOT.iterdir()
  if f.is_dir() and not f.name.startswith("human_") and f.name != "pictures"
)


def pictures():
  return {f.stem: Image.open(f) for f in (ROOT / "pictures").glob("*.png")}


def videos():
  with np.load(ROOT / "videos.npz", allow_pickle=False) as f:
    return {k: f[k] for k in f.files}


def cases(folder):
  """Recorded calls with their outputs, decoded ids, conversations."""
  found = json.loads((folder / "cases.json").read_text("utf-8"))
  with np.load(folder / "expected.npz", allow_pickle=False) as f:
    arrays = {k: f[k] for k in f.files}
  calls = []
  for n, call in enumerate(found["calls"]):
    prefix = f"{n}/"
    calls.append((call, {k[len(prefix) :]: v for k, v in arrays.items() if k.startswith(prefix)}))
  return calls, found.get("decoded", []), found.get("chats", [])


@pytest.mark.parametrize("name", NAMES)
def test_equals_the_reference(name):
  calls, decoded, chats = cases(ROOT / name)
  assert calls and all(expected for _, expected in calls)
  assert processors_check.check(ROOT / name, calls, pictures(), videos()) == []
  assert processors_check.check_texts(ROOT / name, decoded, chats) == []


def test_paths_bytes_and_arrays_are_images_too():
  made = processors.make(ROOT / "image_clip")
  file = ROOT / "pictures" / "rgb.png"
  want = made(images=Image.open(file))["pixel_values"]
  pixels = np.array(Image.open(file))
  for image in (file, str(file), file.read_bytes(), pixels, np.moveaxis(pixels, -1, 0)):
    np.testing.assert_array_equal(made(images=image)["pixel_values"], want)
  twice = made(images=np.stack([pixels, pixels]))["pixel_values"]
  np.testing.assert_array_equal(twice, np.concatenate([want, want]))


def test_transparency_lies_over_white():
  clear = np.zeros((4, 4, 4), np.uint8)
  assert (decoded.rgb(clear) == 255).all()
  assert (decoded.rgb(Image.fromarray(clear)) == 255).all()


@pytest.mark.parametrize(
  "bad", [b"no image", np.zeros((4, 4, 3), np.float32), np.zeros((5, 5, 2), np.uint8)]
)
def test_what_is_no_image_is_named(bad):
  good = np.zeros((5, 5, 3), np.uint8)
  with pytest.raises(ValueError, match=r"images\[1\]"):
    processors.make(ROOT / "image_clip")(images=[good, bad])


def test_nothing_is_made_of_a_directory_without_files(tmp_path):
  assert processors.make(tmp_path) is None


def test_unknown_image_processor_is_named(tmp_path):
  (tmp_path / "preprocessor_config.json").write_text(
    '{"image_processor_type": "ClipImageProcesor"}'
  )
  with pytest.raises(ValueError, match="did you mean 'CLIPImageProcessor'"):
    processors.make(tmp_path)


def test_damaged_tokenizer_files_are_named(tmp_path):
  (tmp_path / "tokenizer.json").write_text("{")
  with pytest.raises(ValueError, match="tokenizer.json is no tokenizer"):
    processors.make(tmp_path)
  (tmp_path / "tokenizer.json").unlink()
  (tmp_path / "tokenizer.model").write_bytes((ROOT / "siglip" / "spiece.model").read_bytes()[:999])
  with pytest.raises(ValueError, match="tokenizer.model is no sentencepiece model"):
    processors.make(tmp_path)


def test_sentencepiece_files_are_read_as_their_library_reads_them():
  import sentencepiece

  path = ROOT / "t5_model_file" / "spiece.model"
  found = spm.read(path.read_bytes(), str(path))
  library = sentencepiece.SentencePieceProcessor(model_file=str(path))
  assert len(found.pieces) == library.get_piece_size()
  for n, (text, score, kind) in enumerate(found.pieces):
    assert (text, score) == (library.id_to_piece(n), library.get_score(n))
    assert (kind == spm.CONTROL) == library.is_control(n)
  assert (found.unk, found.eos, found.bos) == (library.unk_id(), library.eos_id(), -1)


def paligemma():
  return processors.make(ROOT / "paligemma")


GREY = np.full((9, 7, 3), 128, np.uint8)


def test_paligemma_prompt_and_answer():
  made = paligemma()
  box = "<loc0000><loc0512><loc1023><loc0007> cat"
  out = made(images=GREY, text="detect cat", suffix=box)
  tokenizer = made.tokenizer
  ids = out["input_ids"][0]
  head = [tokenizer.id("<image>")] * 6 + [tokenizer.bos]
  assert ids[:7].tolist() == head and ids[-1] == tokenizer.eos
  answer = ids[out["token_type_ids"][0] == 1]
  assert answer[:4].tolist() == [tokenizer.id(f"<loc{n:04d}>") for n in (0, 512, 1023, 7)]
  assert out["labels"][0].tolist() == [-100] * (len(ids) - len(answer)) + answer.tolist()
  assert made.decode(answer) == box
  assert tokenizer.decode(ids[6 : -len(answer)]).endswith("detect cat\n")


@pytest.mark.parametrize(
  ("given", "texts", "message"),
  [
    ([GREY], ["<image><image>a"], r"text\[0\] has 2 <image> marks, but only 1 of 1"),
    ([GREY, GREY, GREY], ["<image>a", "<image>b"], r"3 images, but the texts have 2 .*text\[1\]"),
    ([[GREY], [GREY]], ["<image>a", "<image><image>b"], r"text\[1\] has 2 .* images\[1\] has 1"),
    ([GREY], ["a", "b"], "2 texts, but 1 images"),
    (None, ["a"], "needs images"),
  ],
)
def test_images_and_their_places_must_match(given, texts, message):
  with pytest.raises(ValueError, match=message):
    paligemma()(images=given, text=texts)


def test_gemma3_names_the_prompt_that_lacks_an_image():
  made = processors.make(ROOT / "gemma3")
  with pytest.raises(ValueError, match=r"text\[1\] has 1 <start_of_image> marks"):
    made(text=["a", "<start_of_image> b"])
  with pytest.raises(ValueError, match=r"text\[0\] keeps 3 of 5 image tokens"):
    made(images=GREY, text="<start_of_image>", truncation=True, max_length=6)


def test_rows_of_several_lengths_need_padding():
  made = processors.make(ROOT / "gemma")
  with pytest.raises(ValueError, match="ask for padding"):
    made(text=["a", "a b c"], padding=False)
  out = made(text=["a", "a b c d e f g"], pad_to_multiple_of=32)
  assert out["input_ids"].shape == (2, 32)
  assert out["attention_mask"][0, 0] == 0 and out["attention_mask"][:, -1].all()  # Gemma: left.


def test_a_text_model_learns_an_answer_and_its_end():
  made = processors.make(ROOT / "gemma")
  out = made(text="the cats", suffix=" Park")
  prompt = made(text="the cats")["input_ids"][0]
  ids, labels = out["input_ids"][0], out["labels"][0]
  assert ids[: len(prompt)].tolist() == prompt.tolist() and ids[-1] == made.tokenizer.eos
  assert (labels[: len(prompt)] == -100).all()
  np.testing.assert_array_equal(labels[len(prompt) :], ids[len(prompt) :])


def test_what_a_model_does_not_take_is_said():
  with pytest.raises(ValueError, match="takes no images"):
    processors.make(ROOT / "gemma")(images=GREY, text="a")
  with pytest.raises(ValueError, match="takes no text"):
    processors.make(ROOT / "image_clip")(text="a")
  with pytest.raises(ValueError, match=r"text\[1\] is int"):
    processors.make(ROOT / "gemma")(text=["a", 3])


def test_chat_templates_are_fenced_in():
  messages = [{"role": "user", "content": "hi"}]
  for source in (
    "{{ messages.__class__.__mro__ }}",
    "{{ messages.append(1) }}",
    "{{ ''.__class__.__base__.__subclasses__() }}",
  ):
    with pytest.raises(ValueError, match="refused"):
      chat.render(source, messages, {})
  with pytest.raises(ValueError, match="refused the conversation: only users"):
    chat.render("{{ raise_exception('only users') }}", messages, {})
  with pytest.raises(ValueError, match="no chat template"):
    chat.render(None, messages, {})


def test_chat_templates_see_plain_data_only():
  messages = [{"role": "user", "content": [{"type": "image", "image": GREY}]}]
  text = chat.render("{{ messages[0].content[0].image }}", messages, {})
  assert text == "<ndarray>"


def test_templates_are_found_wherever_they_lie(tmp_path):
  (tmp_path / "tokenizer_config.json").write_text(
    json.dumps({"chat_template": [{"name": "default", "template": "a"}]})
  )
  assert chat.find(tmp_path) == {"default": "a"}
  (tmp_path / "chat_template.json").write_text(json.dumps({"chat_template": "b"}))
  assert chat.find(tmp_path) == "b"
  (tmp_path / "chat_template.jinja").write_text("c")
  assert chat.find(tmp_path) == "c"


def test_old_and_new_files_give_the_same_pixels(tmp_path):
  for name, content in (
    ("old", {"feature_extractor_type": "CLIPFeatureExtractor", "size": 12, "crop_size": 10}),
    (
      "new",
      {
        "image_processor_type": "CLIPImageProcessorFast",
        "size": {"shortest_edge": 12},
        "crop_size": {"height": 10, "width": 10},
      },
    ),
  ):
    (tmp_path / name).mkdir()
    (tmp_path / name / "preprocessor_config.json").write_text(json.dumps(content))
  (tmp_path / "inside").mkdir()
  (tmp_path / "inside" / "processor_config.json").write_text(
    json.dumps({"image_processor": content})
  )
  given = Image.open(ROOT / "pictures" / "wide.png")
  a, b, c = (processors.make(tmp_path / n)(images=given) for n in ("old", "new", "inside"))
  assert a["pixel_values"].shape == (1, 3, 10, 10)
  np.testing.assert_array_equal(a["pixel_values"], b["pixel_values"])
  np.testing.assert_array_equal(a["pixel_values"], c["pixel_values"])


def test_the_class_comes_from_the_model_where_the_published_files_are_wrong(tmp_path):
  shutil.copytree(ROOT / "siglip2_text", tmp_path / "a")
  path = tmp_path / "a" / "tokenizer_config.json"
  path.write_text(json.dumps(json.loads(path.read_text()) | {"tokenizer_class": "GemmaTokenizer"}))
  made = build.make(tmp_path / "a")
  assert made.encode("THE Cats") == made.encode("the cats")
