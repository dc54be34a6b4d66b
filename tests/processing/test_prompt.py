"""Packing against tables written by hand."""

import numpy as np
import pytest

from bigvlm.processing import prompt

IDS = dict(bos=2, eos=1, sep=[9], pad=0)


def table(text: str) -> list[int]:
  return [int(v) for v in text.split()]


def check(arrays, **rows):
  for name, row in rows.items():
    assert arrays[name].tolist() == table(row), name
    assert arrays[name].dtype == (np.float32 if name == "weights" else np.int32), name


def test_row():
  packed = prompt.pack([5, 6], [7, 8], image_tokens=3, text_len=8, read_len=4, **IDS)
  assert not packed.cut
  check(
    packed.arrays,
    #            image    BOS p p SEP s s EOS pad
    tokens="     0  0  0   2  5  6  9  7  8  1  0",
    segment="    1  1  1   1  1  1  1  1  1  1  0",
    block="      0  0  0   0  0  0  0  1  2  3  3",
    order="      0  1  2   3  4  5  6  7  8  9 10",
    positions="  0  1  2   3  4  5  6  7  8  9 10",
    media_index="0  1  2  -1 -1 -1 -1 -1 -1 -1 -1",
    read="6 7 8 0",
    labels="7 8 1 0",
    weights="1 1 1 0",
  )


def test_row_without_image_and_suffix():
  packed = prompt.pack([], [], image_tokens=0, text_len=4, **IDS)
  check(
    packed.arrays,
    tokens="2 9 1 0",
    segment="1 1 1 0",
    block="0 0 1 1",
    media_index="-1 -1 -1 -1",
    read="1 0 0 0",
    labels="1 0 0 0",
    weights="1 0 0 0",
  )


def test_last_target_needs_no_position():
  packed = prompt.pack([5], [7, 8], image_tokens=0, text_len=5, **IDS)
  assert not packed.cut
  check(
    packed.arrays,
    tokens="2 5 9 7 8",
    segment="1 1 1 1 1",
    block="0 0 0 1 2",
    read="2 3 4 0 0",
    labels="7 8 1 0 0",
    weights="1 1 1 0 0",
  )


def test_long_suffix_is_cut_without_eos():
  packed = prompt.pack([5], [7, 8, 4], image_tokens=0, text_len=4, **IDS)
  assert packed.cut
  check(packed.arrays, tokens="2 5 9 7", read="2 3 0 0", labels="7 8 0 0", weights="1 1 0 0")
  packed = prompt.pack([5], [7, 8, 4], image_tokens=0, text_len=9, read_len=2, **IDS)
  assert packed.cut
  check(packed.arrays, tokens="2 5 9 7 8 0 0 0 0", read="2 3", labels="7 8", weights="1 1")


def test_prompt_has_nothing_of_the_answer():
  packed = prompt.pack([5, 6], None, image_tokens=2, text_len=6, **IDS)
  check(
    packed.arrays,
    tokens=" 0 0 2 5 6 9 0 0",
    segment="1 1 1 1 1 1 0 0",
    block="  0 0 0 0 0 0 0 0",
    read="5",
    labels="0",
    weights="0",
  )


def test_separator_of_several_tokens():
  packed = prompt.pack([5], [7], image_tokens=0, text_len=6, bos=2, eos=1, sep=[8, 9])
  check(packed.arrays, tokens="2 5 8 9 7 1", read="3 4 0 0 0 0", labels="7 1 0 0 0 0")


@pytest.mark.parametrize("suffix", [None, [7]])
def test_long_prefix_is_refused(suffix):
  with pytest.raises(ValueError, match="the prefix takes 8 tokens.*text_len=6"):
    prompt.pack([5] * 6, suffix, image_tokens=0, text_len=6, **IDS)


def test_a_prefix_that_fills_the_row():
  """BOS + 4 + SEP = 6 positions: one target is left, and a prompt still fits."""
  packed = prompt.pack([5] * 4, [], image_tokens=0, text_len=6, **IDS)
  check(packed.arrays, tokens="2 5 5 5 5 9", labels="1 0 0 0 0 0", read="5 0 0 0 0 0")
  check(prompt.pack([5] * 4, None, image_tokens=0, text_len=6, **IDS).arrays, read="5")


def test_text_row():
  check(
    prompt.pack_text([5, 6], text_len=5, eos=1, pad=3),
    tokens="5 6 1 3 3",
    segment="1 1 1 1 1",
    block="0 0 0 0 0",
    order="0 1 2 3 4",
    positions="0 1 2 3 4",
    media_index="-1 -1 -1 -1 -1",
    read="4",
    labels="0",
    weights="1",
  )


def test_text_row_keeps_eos_when_cut():
  check(prompt.pack_text([5, 6, 7, 8, 9], text_len=4, eos=1), tokens="5 6 7 1")


def test_mask_concat():
  out = prompt.mask_concat(
    [[2, 5], [9], [7, 8, 1]], mask_ar=(0, 0, 1), mask_loss=(0, 0, 1), length=8
  )
  check(
    out,
    tokens="    2 5 9 7 8 1 0 0",
    mask_ar="   0 0 0 1 1 1 1 1",
    mask_loss=" 0 0 0 1 1 1 0 0",
    mask_input="1 1 1 1 1 1 0 0",
  )
  cut = prompt.mask_concat([[2, 5], [7, 8]], mask_ar=(0, 1), mask_loss=(0, 1), length=3)
  check(cut, tokens="2 5 7", mask_ar="0 0 1", mask_loss="0 0 1", mask_input="1 1 1")
  with pytest.raises(ValueError, match="2 parts, 1 mask_ar"):
    prompt.mask_concat([[1], [2]], mask_ar=(0,), mask_loss=(0, 1), length=3)
