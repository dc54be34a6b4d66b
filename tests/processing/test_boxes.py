"""Boxes and masks as text."""

import numpy as np
import pytest

from bigvlm.processing import boxes

LOC4 = "<loc0000><loc0256><loc0512><loc1023>"
SEG16 = "".join(f"<seg{i:03d}>" for i in range(16))


def test_encode_rounds_and_clips():
  assert boxes.encode_box((0, 0.25, 0.5, 1)) == "<loc0000><loc0256><loc0512><loc1023>"
  assert boxes.encode_box((-0.5, 0.0004, 0.0006, 7)) == "<loc0000><loc0000><loc0001><loc1023>"
  with pytest.raises(ValueError, match="not 3 numbers"):
    boxes.encode_box((0, 0, 1))


def test_round_trip_within_half_a_bin():
  rng = np.random.default_rng(0)
  for _ in range(200):
    y, x = np.sort(rng.uniform(0, 1, 2)), np.sort(rng.uniform(0, 1, 2))
    box = (y[0], x[0], y[1] + 0.01, x[1] + 0.01)
    (found,) = boxes.parse(boxes.detect([(box, "a dog")]))
    np.testing.assert_allclose(found.box, np.clip(box, 0, 1), atol=0.5 / 1023 + 1e-9)
    assert found.name == "a dog" and found.codes is None and found.valid


def test_detect_text_is_the_published_form():
  text = boxes.detect([((0, 0.25, 0.5, 1), "cat"), ((0, 0.25, 0.5, 1), "black dog")])
  assert text == f"{LOC4} cat ; {LOC4} black dog"
  assert [f.name for f in boxes.parse(text)] == ["cat", "black dog"]


def test_segment_round_trip():
  text = boxes.segment([((0, 0.25, 0.5, 1), range(16), "cat")])
  assert text == f"{LOC4}{SEG16} cat"
  (found,) = boxes.parse(text)
  assert found.codes == tuple(range(16)) and found.name == "cat" and found.valid
  with pytest.raises(ValueError, match="16 codes of 0..127"):
    boxes.encode_codes([128] * 16)


@pytest.mark.parametrize(
  "text,names",
  [
    ("", []),
    ("no", []),
    ("<loc0001><loc0002><loc0003> cat", []),  # three locations are no box
    (f"{LOC4}", [""]),
    (f"well, {LOC4} cat", ["cat"]),
    (f"{LOC4} cat{LOC4} dog", ["cat", "dog"]),
    (f"{LOC4}{SEG16}{LOC4}{SEG16} 7", ["", "7"]),
    (f"{LOC4} cat ; {LOC4}", ["cat", ""]),
    (f"{LOC4} cat\n ; <loc12> {LOC4} dog", ["cat", "dog"]),
  ],
)
def test_parse_of_odd_answers(text, names):
  assert [f.name for f in boxes.parse(text)] == names


def test_impossible_objects_are_marked():
  for locs in ((5, 5, 5, 9), (9, 5, 5, 9), (0, 0, 1024, 9)):
    text = "".join(f"<loc{i:04d}>" for i in locs) + " cat"
    assert [f.valid for f in boxes.parse(text)] == [False]
  bad = LOC4 + "<seg128>" * 16 + " cat"
  assert [f.valid for f in boxes.parse(bad)] == [False]


def test_too_few_codes_are_no_mask():
  (found,) = boxes.parse(LOC4 + "<seg001>" * 15 + " cat")
  assert found.codes is None
