"""Marks of images and videos in prompts: their tokens, their numbers and what is said of them."""

import json
import pathlib
import shutil

import numpy as np
import pytest
from PIL import Image

from bigvlm.processing import video
from bigvlm.processing.hub import numerals, processors

ROOT = pathlib.Path(__file__).resolve().parents[2] / "fixtures" / "processors"
MARKS = {
  "deepseek_vl": "<image_placeholder>",
  "fuyu": "",
  "idefics2": "<image>",
  "idefics3": "<image>",
  "internvl": "<IMG_CONTEXT>",
  "llava": "<image>",
  "llava_next": "<image>",
  "llava_onevision": "<image>",
  "mllama": "<|image|>",
  "pixtral": "[IMG]",
  "qwen2_vl": "<|image_pad|>",
  "smolvlm": "<image>",
  "video_llama_3": "<|image_pad|>",
}
SIZES = [(20, 20), (7, 61), (97, 13), (33, 47), (64, 64), (21, 40)]


def grey(height, width, shade=128):
  return np.full((height, width, 3), shade, np.uint8)


@pytest.mark.parametrize("name", MARKS)
def test_tokens_are_known_before_the_image_is_read(name):
  made = processors.make(ROOT / name)
  number = made.tokenizer.id(made.image_token)
  for size in SIZES:
    ids = made(images=[grey(*size)], text=[MARKS[name] + "a"])["input_ids"]
    assert (ids == number).sum() == made.count(size) > 0, size


def test_an_image_among_others_takes_other_tokens():
  made = processors.make(ROOT / "llava_onevision")
  images = [[grey(33, 47), grey(20, 20)]]
  ids = made(images=images, text=["<image><image>"])["input_ids"]
  number = made.tokenizer.id("<image>")
  assert (ids == number).sum() == 2 * made.count((33, 47), alone=False) == 52
  assert made.count((33, 47)) != 26


def test_a_setting_of_the_call_changes_the_number():
  made = processors.make(ROOT / "internvl")
  assert made.count((20, 60)) == 16 and made.count((20, 60), crop_to_patches=False) == 4


def test_videos_are_read_wherever_they_are(tmp_path):
  made = processors.make(ROOT / "qwen2_vl")
  frames = [Image.fromarray(grey(24, 32, 40 * n)) for n in range(6)]
  path = tmp_path / "film.gif"
  frames[0].save(path, save_all=True, append_images=frames[1:], duration=500)
  want = made(videos=[frames], text="<|video_pad|>", num_frames=4)
  for source in (path, str(path), video.read(path, count=4), np.stack(frames)):
    found = made(videos=source, text="<|video_pad|>", num_frames=4)
    assert found["video_grid_thw"].tolist() == [[2, 6, 8]]
    np.testing.assert_array_equal(found["input_ids"], want["input_ids"])
    np.testing.assert_array_equal(found["pixel_values_videos"], want["pixel_values_videos"])
  assert made(videos=path, text="<|video_pad|>")["video_grid_thw"].tolist() == [[3, 6, 8]]


@pytest.mark.parametrize(
  ("given", "message"),
  [
    (dict(videos=np.stack([grey(20, 20)] * 2), text="a"), "0 .* marks, but there are 1 videos"),
    (dict(images=[grey(20, 20)], text="a"), "1 images, but the texts have 0"),
    (dict(text="<|image_pad|>"), r"text\[0\] has 1 <\|image_pad\|> marks, but only 0"),
    (dict(images=[grey(20, 4100)], text="<|image_pad|>"), "too long: at most 200 to 1"),
    (dict(text="a", patch_sise=4), "did you mean 'patch_size'"),
    (
      dict(videos=[grey(20, 20)] * 3, text="<|video_pad|>", fps=1),
      "no frame rate",
    ),
  ],
)
def test_what_does_not_match_is_said(given, message):
  with pytest.raises(ValueError, match=message):
    processors.make(ROOT / "qwen2_vl")(**given)


def test_a_model_without_videos_says_so():
  with pytest.raises(ValueError, match="takes no videos"):
    processors.make(ROOT / "llava")(videos=np.stack([grey(20, 20)] * 2), text="a")


def test_an_answer_follows_the_expanded_prompt():
  made = processors.make(ROOT / "llava_next")
  out = made(images=[grey(30, 30)], text="<image> what", suffix=" cats")
  answer = out["labels"][0] != -100
  assert made.decode(out["input_ids"][0][answer]) == " cats"
  assert out["input_ids"][0, -1] == made.tokenizer.eos and answer[-1] and not answer[0]


def test_images_stand_in_front_of_prompts_without_marks():
  made = processors.make(ROOT / "qwen2_vl")
  start, end = "<|vision_start|>", "<|vision_end|>"
  found = made.placed(["a", "<|image_pad|> b", "c"], [["x", "y"], ["z"], []], [0, 0, 1])
  image, film = f"{start}<|image_pad|>{end}", f"{start}<|video_pad|>{end}"
  assert found == [image * 2 + "a", "<|image_pad|> b", film + "c"]


def test_idefics_takes_rows_of_texts_and_images():
  made = processors.make(ROOT / "idefics")
  image = grey(20, 20)
  rows = made(text=[["User: ", image, "what?"], ["no image"]])
  marked = made(images=[[image], []], text=["User: <image>what?", "no image"])
  for key, value in rows.items():
    np.testing.assert_array_equal(value, marked[key])
  assert rows["image_attention_mask"][0].any() and not rows["image_attention_mask"][1].any()


def test_numbers_in_words():
  words = {0: "zero", 8: "eight", 19: "nineteen", 40: "forty", 64: "sixty-four"}
  words |= {100: "one hundred", 128: "one hundred and twenty-eight"}
  words |= {1005: "one thousand and five", 2300: "two thousand, three hundred"}
  assert {n: numerals.words(n) for n in words} == words


@pytest.mark.parametrize("name", ["llava_onevision", "qwen2_vl", "smolvlm", "video_llava"])
def test_files_of_their_own_give_the_same_as_one_file(name, tmp_path):
  folder = tmp_path / name
  shutil.copytree(ROOT / name, folder)
  content = json.loads((folder / "processor_config.json").read_text("utf-8"))
  parts = {
    "preprocessor_config.json": content.pop("image_processor"),
    "video_preprocessor_config.json": content.pop("video_processor"),
  }
  parts["preprocessor_config.json"]["processor_class"] = content["processor_class"]
  for file, part in (parts | {"processor_config.json": content}).items():
    (folder / file).write_text(json.dumps(part), "utf-8")
  old, new = processors.make(folder), processors.make(ROOT / name)
  text = f"{new.image_token} a {new.video_token}"
  given = dict(images=[grey(33, 47)], videos=np.stack([grey(30, 41, 9 * n) for n in range(4)]))
  if name == "smolvlm":  # It takes one or the other.
    text, given = text.removeprefix(new.image_token), {"videos": given["videos"]}
  want = new(text=text, **given)
  for key, value in old(text=text, **given).items():
    np.testing.assert_array_equal(value, want[key])


def test_pixels_by_their_older_names(tmp_path):
  shutil.copytree(ROOT / "qwen2_vl", tmp_path / "a")
  path = tmp_path / "a" / "processor_config.json"
  content = json.loads(path.read_text("utf-8"))
  sizes = dict(min_pixels=100, max_pixels=400, size=None)
  content["image_processor"] |= sizes
  path.write_text(json.dumps(content), "utf-8")
  old, new = processors.make(tmp_path / "a"), processors.make(ROOT / "qwen2_vl")
  size = {"shortest_edge": 100, "longest_edge": 400}
  assert old.count((33, 47)) == new.count((33, 47), size=size) != new.count((33, 47))
