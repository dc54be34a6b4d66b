"""Every score against numbers worked out by hand or by the field's own tools."""

import collections
import json
import math

import numpy as np
import pytest

from bigvlm.evaluators import scores, text
from tests.parity import make_cider


@pytest.mark.parametrize(
  "answer, target, value",
  [("7", "7", 1), (" 7\n", "7", 1), ("7", "77", 0), ("A", "a", 0), ("", "", 1)],
)
def test_exact_match(answer, target, value):
  assert scores.exact_match(answer, target) == value


# The official tools: normalised only where people disagree; leave-one-out mean.
@pytest.mark.parametrize(
  "answer, targets, value",
  [
    ("Yes", ["yes"] * 10, 0.0),
    ("yes", ["yes"] * 10, 1.0),
    ("yes\n", ["yes"] * 10, 1.0),
    ("Two.", ["two"] * 4 + ["2"] * 6, 1.0),
    ("x", ["x"] * 1 + ["y"] * 9, 0.3),
    ("x", ["x"] * 2 + ["y"] * 8, 0.6),
    ("x", ["x"] * 3 + ["y"] * 7, 0.9),
    ("x", ["x"] * 4 + ["y"] * 6, 1.0),
    ("x", ["z"] * 5 + ["y"] * 5, 0.0),
    ("a cat", ["cat"] * 9 + ["dog"], 1.0),
    ("1,000", ["1000"] * 9 + ["many"], 1.0),
    ("3.5", ["3.5"] * 9 + ["35"], 1.0),
    ("3.5", ["3.5"] * 1 + ["35"] * 9, 0.3),
    ("cat", ["cat"], 1.0),
  ],
)
def test_vqa_accuracy(answer, targets, value):
  assert scores.vqa_accuracy(answer, targets) == pytest.approx(value, abs=1e-12)


def test_textvqa_normalises_when_all_agree():
  assert scores.vqa_accuracy("Yes", ["yes"] * 10, always_normalise=True) == 1.0


def test_vqa_accuracy_needs_targets():
  with pytest.raises(ValueError, match="no target"):
    scores.vqa_accuracy("yes", [])


@pytest.mark.parametrize(
  "before, after",
  [
    ("The Cat", "cat"),
    ("dont know", "don't know"),
    ("couldnt've", "couldn't've"),
    ("couldn'tve", "couldn't've"),
    ("yall'd've", "y'all'd've"),
    ("three dogs", "3 dogs"),
    ("none", "0"),
    ("1,000", "1000"),
    ("3.5", "3.5"),
    ("end.", "end"),
    ("red/blue", "red blue"),
    ("red / blue", "red blue"),
    ("t-shirt", "t shirt"),
    ("who?", "who"),
    ("10:30", "10:30"),  # a colon is no mark of the official list
    ("a/b 1,2", "ab 12"),  # a comma between digits anywhere: every mark is deleted, not spaced
  ],
)
def test_normalisation_of_vqa_answers(before, after):
  assert text.normalise(before) == after


def test_vqa_simple():
  assert scores.vqa_simple("a", ["a", "a", "b"]) == pytest.approx(2 / 3)
  assert scores.vqa_simple("a", ["a"] * 5 + ["b"] * 5) == 1.0
  assert scores.vqa_simple("A", ["a"]) == 0.0


@pytest.mark.parametrize(
  "answer, targets, value",
  [
    ("abc", ["abc"], 1.0),
    ("abxd", ["abcd"], 0.75),
    ("abxy", ["abcd"], 0.0),  # distance exactly 0.5
    ("  ABC  d ", ["abc d"], 1.0),
    ("abc", ["xyz", "abd"], 2 / 3),
    ("", [""], 1.0),
    ("a", [""], 0.0),
  ],
)
def test_anls(answer, targets, value):
  assert scores.anls(answer, targets) == pytest.approx(value)


@pytest.mark.parametrize("a, b, n", [("kitten", "sitting", 3), ("", "abc", 3), ("flaw", "lawn", 2)])
def test_levenshtein(a, b, n):
  assert scores.levenshtein(a, b) == scores.levenshtein(b, a) == n


@pytest.mark.parametrize(
  "answer, target, value",
  [
    ("105", "100", 1),
    ("106", "100", 0),
    ("50%", "0.5", 1),
    ("0", "0", 1),
    ("0.01", "0", 0),
    ("Yes", "yes", 1),
    ("1,000", "1000", 0),
    ("-95", "-100", 1),
    ("nan", "5", 0),
  ],
)
def test_relaxed_accuracy(answer, target, value):
  assert scores.relaxed_accuracy(answer, target) == value


def test_box_iou():
  a = [[0, 0, 2, 2], [0, 0, 0, 5], [3, 3, 1, 1]]
  b = [[1, 1, 3, 3], [0, 0, 2, 2], [5, 5, 6, 6]]
  np.testing.assert_allclose(scores.box_iou(a, b), [[1 / 7, 1, 0], [0, 0, 0], [0, 0, 0]])
  assert scores.box_iou(np.zeros((0, 4)), b).shape == (0, 3)


def test_box_accuracy_counts_one_half():
  assert scores.box_accuracy([0, 0, 1, 2], [0, 0, 2, 2]) == 1.0
  assert scores.box_accuracy([0, 0, 0.99, 2], [0, 0, 2, 2]) == 0.0
  assert scores.box_accuracy(None, [0, 0, 2, 2]) == 0.0


# Boxes as y0 x0 y1 x1 in pixels. The values were computed with pycocotools 2.0.11 (COCOeval on
# the same boxes as x y w h): stats[1] = 0.5841584158415841, stats[0] = 0.2083058305830583.
COCO_CASE = [
  ([[1, 14, 36, 40], [16, 44, 48, 60], [12, 51, 42, 58]], "211",
   [[38, 30, 56, 49], [0, 10, 34, 39], [16, 48, 46, 58]], "021"),
  ([], "", [[25, 24, 35, 34]], "0"),
  ([[31, 42, 51, 70], [60, 36, 93, 71]], "22", [[31, 38, 48, 66], [57, 39, 92, 69]], "22"),
  ([], "", [[18, 25, 42, 56]], "2"),
  ([[41, 39, 66, 53], [0, 3, 26, 42], [4, 4, 24, 36]], "211",
   [[31, 21, 61, 48], [43, 35, 68, 55], [2, 5, 23, 39]], "021"),
  ([[46, 46, 60, 79], [2, 55, 27, 86], [4, 53, 24, 92]], "022",
   [[47, 42, 63, 75], [5, 53, 23, 90], [55, 28, 93, 43]], "021"),
]  # fmt: skip


def images(case):
  return [
    dict(
      boxes=boxes,
      labels=list(labels),
      scores=[-i for i in range(len(boxes))],
      target_boxes=target_boxes,
      target_labels=list(target_labels),
    )
    for boxes, labels, target_boxes, target_labels in case
  ]


def test_average_precision_is_that_of_pycocotools():
  table = scores.average_precision(images(COCO_CASE))
  assert table[0.5] == pytest.approx(0.5841584158415841, abs=1e-9)
  assert np.mean(list(table.values())) == pytest.approx(0.2083058305830583, abs=1e-9)


def test_average_precision_by_hand():
  box, other = [0, 0, 10, 10], [20, 20, 30, 30]
  perfect = [([box, other], "77", [box, other], "77")]
  assert scores.average_precision(images(perfect), [0.5]) == {0.5: 1.0}
  # The first find is false, the second true: precision 1/2 at every recall.
  late = [([other, box], "77", [box], "7")]
  assert scores.average_precision(images(late), [0.5])[0.5] == pytest.approx(0.5)
  # A second box on the same target is a false find; it ranks last, so it costs nothing.
  twice = [([box, box], "77", [box], "7")]
  assert scores.average_precision(images(twice), [0.5])[0.5] == 1.0
  # Half of the targets found: recalls 0 .. 0.5 have precision 1, that is 51 of 101 points.
  half = [([box], "7", [box, other], "77")]
  assert scores.average_precision(images(half), [0.5])[0.5] == pytest.approx(51 / 101)
  # The wrong name finds nothing.
  assert scores.average_precision(images([([box], "8", [box], "7")]), [0.5])[0.5] == 0.0
  assert scores.average_precision([], [0.5]) == {0.5: 0.0}


def test_average_precision_takes_no_more_than_max_boxes():
  box, other = [0, 0, 10, 10], [20, 20, 30, 30]
  case = images([([other, other, box], "777", [box], "7")])
  assert scores.average_precision(case, [0.5], max_boxes=2)[0.5] == 0.0
  assert scores.average_precision(case, [0.5], max_boxes=3)[0.5] == pytest.approx(1 / 3)


def test_match_boxes_takes_the_best_free_target():
  targets = [[0, 0, 10, 10], [0, 4, 10, 14]]
  boxes = [[0, 3, 10, 13], [0, 3, 10, 13], [0, 3, 10, 13]]
  assert scores.match_boxes(boxes, targets, 0.5).tolist() == [True, True, False]


def test_masks():
  a, b = np.zeros((2, 4, 4), bool)
  a[:2], b[1:3] = True, True
  assert scores.mask_iou(a, b) == pytest.approx(4 / 12)
  assert scores.mask_iou(np.zeros((4, 4)), np.zeros((4, 4))) == 1.0
  assert scores.mask_iou(None, b) == 0.0
  overlaps = [(4, 12), (8, 8), (0, 0)]
  assert scores.mean_iou(overlaps) == pytest.approx((1 / 3 + 1 + 1) / 3)
  assert scores.cumulative_iou(overlaps) == pytest.approx(12 / 20)
  with pytest.raises(ValueError, match=r"\(4, 4\) and \(4, 5\)"):
    scores.mask_iou(np.zeros((4, 4)), np.zeros((4, 5)))


def test_ranks_with_several_captions():
  images_ = np.eye(3)
  # Captions of picture 0: one exact, one nearest to picture 1. Picture 2's caption is off.
  captions = np.array([[1, 0, 0], [0.1, 1, 0], [0, 1, 0], [0.8, 0.5, 0.1]])
  captions /= np.linalg.norm(captions, axis=1, keepdims=True)
  owner = np.array([0, 0, 1, 2])
  i2t = scores.ranks(images_, captions, np.arange(3), owner)
  t2i = scores.ranks(captions, images_, owner, np.arange(3))
  assert i2t.tolist() == [0, 0, 0]
  assert t2i.tolist() == [0, 1, 0, 2]
  assert scores.recall_at(t2i, 1) == 0.5
  assert scores.recall_at(t2i, 2) == 0.75


def test_ranks_do_not_reward_collapse():
  same = np.ones((4, 2)) / np.sqrt(2)
  assert scores.ranks(same, same, np.arange(4), np.arange(4)).tolist() == [3, 3, 3, 3]
  broken = np.full((4, 2), np.nan)
  assert scores.ranks(broken, broken, np.arange(4), np.arange(4)).tolist() == [3, 3, 3, 3]


def test_rank_of_a_query_without_a_right_item_is_last():
  assert scores.ranks(np.eye(2), np.eye(2), np.array([0, 9]), np.arange(2)).tolist() == [0, 2]


def test_class_embeddings_average_templates_and_names():
  vectors = {"a cat": [1, 0], "the cat": [0, 1], "a dog": [0.6, 0.8], "the dog": [1, 0],
             "a hound": [0, 1], "the hound": [-1, 0]}  # fmt: skip
  table = scores.class_embeddings(
    lambda texts: np.array([vectors[t] for t in texts]),
    ["cat", ("dog", "hound")],
    ["a {}", "the {}"],
  )
  np.testing.assert_allclose(table[0], np.sqrt([0.5, 0.5]))
  np.testing.assert_allclose(table[1], np.array([0.6, 1.8]) / np.hypot(0.6, 1.8))
  hits = scores.top_k(np.array([[1, 0], [0, 1]]), table, np.array([0, 0]), k=1)
  assert hits.tolist() == [True, False]


def test_unknown_score_names_the_nearest():
  with pytest.raises(ValueError, match="'relaxed'"):
    scores.text_score("relaxd")


def test_cider_d_is_pycocoevalcaps():
  golden = json.loads(make_cider.FILE.read_text())
  rows = golden["rows"]
  found = scores.cider_d([r["answer"] for r in rows], [r["targets"] for r in rows])
  np.testing.assert_allclose(found, [r["cider_d"] for r in rows], rtol=1e-9, atol=1e-12)
  assert found.mean() == pytest.approx(golden["mean"], rel=1e-9) and golden["mean"] > 0.5


def plain_cider(answers, targets):
  """The formulas of arXiv 1411.5726, a number at a time."""
  out = []
  for answer, people in zip(answers, targets, strict=True):
    total = 0.0
    for target in people:
      for n in range(1, 5):

        def grams(sentence, n=n):
          words = sentence.split()
          return collections.Counter(zip(*(words[i:] for i in range(n)), strict=False))

        def rarity(gram, grams=grams):
          images = sum(any(gram in grams(t) for t in several) for several in targets)
          return math.log(len(targets) / max(1, images))

        a, b = grams(answer), grams(target)
        dot = sum(a[g] * b[g] * rarity(g) ** 2 for g in a)
        sizes = [math.sqrt(sum((x[g] * rarity(g)) ** 2 for g in x)) for x in (a, b)]
        total += dot / (sizes[0] * sizes[1]) / 4 / len(people) if all(sizes) else 0.0
    out.append(total)
  return out


def test_cider_is_the_papers():
  answers = ["a dog runs on the grass", "the the the the", "a red bus waits"]
  targets = [
    ["a dog runs", "one dog plays on the grass"],
    ["the cat sits on the table"],
    ["a red bus waits", "a bus"],
  ]
  found = scores.cider(answers, targets)
  np.testing.assert_allclose(found, plain_cider(answers, targets), rtol=1e-12)
  # Saying one word again and again pays under CIDEr, not under CIDEr-D.
  assert found[1] > 0 and scores.cider_d(answers, targets)[1] < 10 * found[1] / 2


def test_cider_of_equal_captions_and_of_one_picture():
  captions = [f"{word} stands beside the old {word} bridge" for word in "abcdefgh"]
  np.testing.assert_allclose(scores.cider_d(captions, [[c] for c in captions]), 10)
  assert scores.cider_d(captions[:1], [captions[:1]])[0] == 0
  with pytest.raises(ValueError, match="2 answers, but targets of 1"):
    scores.cider(captions[:2], [["a"]])
  with pytest.raises(ValueError, match="no target"):
    scores.cider(["a"], [[]])


@pytest.mark.parametrize(
  "caption, words",
  [
    ("A man's T-shirt, (red) \u2014 at 3.5 km.", "a man 's t-shirt red at 3.5 km"),
    ('It doesn\'t matter... "really"!', "it does n't matter really"),
    ("Mr. Smith can't see; they\u2019re gone --", "mr. smith ca n't see they 're gone"),
    ("We cannot pay $1,000 in the U.S. at 10:30", "we can not pay $ 1,000 in the u.s. at 10:30"),
    ("  'half-eaten' pizza: 50%  ", "half-eaten pizza 50 %"),
    ("", ""),
  ],
)
def test_words_of_captions(caption, words):
  assert text.caption_words(caption) == words.split()
