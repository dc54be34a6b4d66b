"""Prefixes, suffixes and pictures that are made of the fields of a record."""

import numpy as np
import pytest

from bigvlm.processing import ops
from bigvlm.processing.image import BadExample


def rng(seed=0):
  return np.random.default_rng(seed)


def run(example, op, seed=0, **kwargs):
  return ops.make(dict(op=op, **kwargs))(example, rng(seed))


def test_template_takes_fields_as_they_are_and_leaves_what_is_there():
  example = dict(question="what {is} it?", choices=["a", "b"])
  pattern = "answer en {question} choose from: {choices}"
  made = run(example, "template", pattern=pattern, sep=" \t ")
  assert made["prefix"] == "answer en what {is} it? choose from: a \t b"
  assert run(dict(prefix="mine"), "template", pattern=pattern) == dict(prefix="mine")
  assert run(dict(n=3), "template", pattern="{n}.", to="suffix")["suffix"] == "3."
  with pytest.raises(BadExample, match="a.jsonl:3: has no field 'question'; it has id, sentence"):
    run(dict(id="a.jsonl:3", sentence="x"), "template", pattern=pattern)


def test_letters_follow_the_right_choice():
  example = dict(choices=["cat", "dog", "cow"], label=1)
  still = run(example, "letter_choices", shuffle=False)
  assert (still["options"], still["letter"]) == ("(A) cat, (B) dog, (C) cow", "B")
  seen = set()
  for seed in range(20):
    made = run(example, "letter_choices", seed)
    assert f"({made['letter']}) dog" in made["options"]
    seen.add(made["options"])
  assert len(seen) == 6
  for label in (3, -1, "B"):
    with pytest.raises(BadExample, match="is not the index of one of 3 choices"):
      run(dict(example, label=label), "letter_choices")


def test_frames():
  video = list("abcdefghij")
  assert run(dict(image=video), "frames", count=3, stride=3)["image"] == ["a", "d", "g"]
  assert run(dict(image=video[:4]), "frames", count=3, stride=3)["image"] == ["a", "d", "a"]
  starts = {
    run(dict(image=video), "frames", seed, count=3, stride=3, random_start=True)["image"][0]
    for seed in range(30)
  }
  assert starts == set("abcd")
  short = run(dict(image=video[:2]), "frames", count=3, random_start=True)["image"]
  assert short == ["a", "b", "a"]
  for wrong in ("a.jpg", []):
    with pytest.raises(BadExample, match="not a list of frames"):
      run(dict(image=wrong), "frames", count=3)


def test_draw_box_draws_its_edge_alone():
  image = np.zeros((11, 21, 3), np.uint8)
  out = run(dict(image=image, box=[0.1, 0.25, 0.5, 0.75]), "draw_box")["image"]
  want = np.zeros((11, 21), bool)
  want[1:6, 5:16] = True
  want[2:5, 6:15] = False
  np.testing.assert_array_equal(out[..., 0] == 255, want)
  assert not out[..., 1:].any() and not image.any()
  for box in ([0, 0, 1], [0, 0, 2, 1]):
    with pytest.raises(BadExample, match="not 4 numbers in 0..1"):
      run(dict(image=image, box=box), "draw_box")


def test_ops_of_a_picture_run_on_each_of_several(pictures):
  several = [pictures.scene(), pictures.encoded(pictures.scene(30, 20), "PNG")]
  out = run(dict(image=several), "resize", size=8)["image"]
  assert [one.shape for one in out] == [(8, 8, 3)] * 2
  assert run(dict(suffix=["A", "b"]), "lower")["suffix"] == ["a", "b"]


def test_read_mask(pictures):
  mask = np.zeros((5, 4), np.uint8)
  mask[1:3] = 255
  out = run(dict(mask=pictures.encoded(mask, "PNG")), "read_mask")["mask"]
  np.testing.assert_array_equal(out, mask > 0)
