"""Positions of mixed text, pictures and videos, against rows written out by hand."""

import numpy as np
import pytest

from bigvlm.processing import positions
from bigvlm.processing.positions import Span

# Kinds of the tokens (0 text, 1 picture, 2 video), spans, and frame, row and column of each token.
CASES = {
  "text": ([0, 0, 0], {}, ["000", "111", "222"]),
  "picture": ([0, 1, 1, 1, 1, 1, 1, 0], {1: [Span((1, 2, 3))]}, "000 111 112 113 121 122 123 444"),
  "high": ([1, 1, 1, 0, 0], {1: [Span((1, 3, 1))]}, "000 010 020 333 444"),
  "two": (
    [0, 1, 1, 0, 1, 1, 0],
    {1: [Span((1, 1, 2)), Span((1, 2, 1))]},
    "000 111 112 333 444 454 666",
  ),
  # What follows a long video of small frames begins beside its last frames, as in the reference.
  "video": ([0, 2, 2, 2, 0, 0], {2: [Span((3, 1, 1))]}, "000 111 211 311 222 333"),
  "slow": ([2, 2, 2, 2, 0], {2: [Span((4, 1, 1), 1.5)]}, "000 100 300 400 111"),
  "both": (
    [0, 2, 2, 0, 1, 1, 0],
    {1: [Span((1, 2, 1))], 2: [Span((1, 1, 2))]},
    "000 111 112 333 444 454 666",
  ),
}


@pytest.mark.parametrize("name", CASES)
def test_positions_of_a_row(name):
  kinds, spans, wanted = CASES[name]
  wanted = wanted.split() if isinstance(wanted, str) else wanted
  found = positions.mrope(np.array([kinds]), spans)
  assert ["".join(map(str, place)) for place in found[0]] == wanted


@pytest.mark.parametrize("left", [0, 2])
def test_padding_takes_no_place_in_the_text(left):
  kinds, spans, _ = CASES["both"]
  padded, mask = np.zeros((1, 9), int), np.zeros((1, 9), int)
  padded[0, left : left + 7], mask[0, left : left + 7] = kinds, 1
  found = positions.mrope(padded, spans, mask)
  alone = positions.mrope(np.array([kinds]), spans)
  np.testing.assert_array_equal(found[:, left : left + 7], alone)
  assert not found[mask == 0].any()


def test_rows_take_their_media_in_reading_order():
  kinds = np.array([[1, 1, 0, 0], [0, 1, 1, 1]])
  found = positions.mrope(kinds, {1: [Span((1, 2, 1)), Span((1, 1, 3))]})
  assert found[0].tolist() == [[0, 0, 0], [0, 1, 0], [2, 2, 2], [3, 3, 3]]
  assert found[1].tolist() == [[0, 0, 0], [1, 1, 1], [1, 1, 2], [1, 1, 3]]


def test_times_are_cut_in_the_dtype_of_the_interval():
  single = positions.places(Span((8, 1, 1), 3 * np.float32(1.3)), 0)[:, 0]
  wanted = (np.arange(8, dtype=np.float32) * np.float32(3 * np.float32(1.3))).astype(int)
  np.testing.assert_array_equal(single, wanted)


@pytest.mark.parametrize(
  "kinds, spans, message",
  [
    ([0, 1, 0], {}, "row 0 has media tokens at 1 that no grid is left for"),
    ([1, 0, 1], {1: [Span((1, 1, 2))]}, "of which the 2 tokens are apart"),
  ],
)
def test_media_that_do_not_fit_are_refused(kinds, spans, message):
  with pytest.raises(ValueError, match=message):
    positions.mrope(np.array([kinds]), spans)
