"""The digit scenes: what a scene says of itself is what is drawn."""

import numpy as np
import pytest

from bigvlm.data import digits

FIELDS = dict(digits=(1, 6), size=(16, 28), light_ink=0.0, noise=0.0, contrast=0.6)


def source(**fields):
  return digits.Digits(**{**FIELDS, **fields})


def test_a_scene_depends_on_seed_split_and_index_alone():
  a, b = source(tasks=dict(which=1.0, count=1.0)), source(tasks=dict(which=1.0, count=1.0))
  for i in (0, 7, 123_456):
    assert a[i]["prefix"] == b[i]["prefix"] and a[i]["suffix"] == b[i]["suffix"]
    np.testing.assert_array_equal(a[i]["image"], b[i]["image"])
  other = source(tasks=dict(which=1.0, count=1.0), seed=1)
  assert (a[7]["image"] != other[7]["image"]).any()


def test_no_scan_is_in_both_splits():
  scans = digits.load_scans()
  assert scans.pixels.shape == (1797, 8, 8) and scans.test.sum() == digits.TEST_SCANS
  for split, is_test in (("train", False), ("test", True)):
    made = source(split=split)
    for i in range(40):
      used = made.scene(made._rng(i, 1)).scans
      assert (scans.test[used] == is_test).all()
  assert set(np.unique(scans.labels[scans.test])) == set(range(10))


def test_boxes_hold_the_ink_and_nothing_else_does():
  made = source()
  for i in range(20):
    scene = made.scene(made._rng(i, 1))
    assert 1 <= len(scene.labels) <= 6
    dark = scene.image.astype(int).mean(-1)
    covered = np.zeros(dark.shape, bool)
    for y0, x0, y1, x1 in scene.boxes:
      assert not covered[y0:y1, x0:x1].any()  # digits do not overlap
      covered[y0:y1, x0:x1] = True
    darkest_ground = dark[~covered].min()
    for y0, x0, y1, x1 in scene.boxes:  # ink is darker than any ground
      assert dark[y0:y1, x0:x1].min() < darkest_ground - 40


def test_answers_agree_with_the_scene():
  for task in ("caption", "which", "count", "largest", "detect", "detect_all"):
    made = source(tasks={task: 1.0}, split="test")
    for i in range(15):
      e = made[i]
      if task == "caption":
        assert e["suffix"] == " ".join(e["labels"]) == e["text"]
      elif task == "count":
        asked = e["prefix"][-1]
        assert e["suffix"] == str(e["labels"].count(asked))
      elif task == "largest":
        heights = e["boxes"][:, 2] - e["boxes"][:, 0]
        assert e["labels"][int(heights.argmax())] == e["suffix"]
      elif task == "which":
        assert e["suffix"] in e["labels"]
      else:
        assert e["suffix"].count("<loc") == 4 * len(e["boxes"])
        if task == "detect":
          assert set(e["labels"]) == {e["prefix"].split()[-1]}


def test_repeats_are_as_asked():
  for share in (0.0, 1.0):
    made = source(digits=(3, 3), size=(14, 18), repeats=share)
    apart = [len(set(made[i]["labels"])) for i in range(60)]
    assert max(apart) < 3 if share else apart.count(3) > 30


def test_unknown_tasks_and_a_missing_codec_are_named():
  with pytest.raises(ValueError, match="did you mean 'count'"):
    source(tasks=dict(cuont=1.0))
  with pytest.raises(ValueError, match="segment.*codec"):
    source(tasks=dict(segment=1.0))


def test_masks_are_one_a_scan():
  train, test = digits.Masks("train"), digits.Masks("test")
  assert len(train) + len(test) == 1797
  mask = train[3]["mask"]
  assert mask.shape == (64, 64) and set(np.unique(mask)) == {0.0, 1.0}
  for edge in (mask[0], mask[-1], mask[:, 0], mask[:, -1]):
    assert edge.any()  # the crop is tight
