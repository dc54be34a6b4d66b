"""Scores, as pure functions on strings and arrays. All but CIDEr-D are between 0 and 1.

Boxes are `y0 x0 y1 x1`, in any frame that is the same for both sides of a comparison.
"""

from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np

from bigvlm.evaluators import text
from bigvlm.utils import names

COCO_IOUS = tuple(np.linspace(0.5, 0.95, 10))


def exact_match(answer: str, target: str) -> float:
  """1 if the strings are equal after stripping white space at the ends, else 0."""
  return float(answer.strip() == target.strip())


def vqa_accuracy(answer: str, targets: Sequence[str], always_normalise: bool = False) -> float:
  """Accuracy of open VQA against several people's answers (VQA v2, official tools).

  The mean over the leave-one-out subsets of `targets` of min(1, matches / 3). Answers are
  normalised (`text.normalise`) only when the people do not all agree, as the official tools do;
  `always_normalise` is TextVQA's variant.
  """
  if not targets:
    raise ValueError("vqa_accuracy: no target answers")
  answer, targets = text.clean(answer), [text.clean(t) for t in targets]
  if always_normalise or len(set(targets)) > 1:
    answer, targets = text.normalise(answer), [text.normalise(t) for t in targets]
  same = [t == answer for t in targets]
  if len(targets) == 1:
    return float(same[0])  # nobody is left to compare with
  n = sum(same)
  return float(np.mean([min(1.0, (n - s) / 3) for s in same]))


def vqa_simple(answer: str, targets: Sequence[str]) -> float:
  """Exact match for one target, min(1, matches / 3) for several (big_vision `vqa.py`)."""
  if len(targets) == 1:
    return exact_match(answer, targets[0])
  return min(1.0, sum(answer == t for t in targets) / 3)


def levenshtein(a: str, b: str) -> int:
  """Least number of insertions, deletions and replacements of characters from `a` to `b`."""
  row = list(range(len(b) + 1))
  for i, ca in enumerate(a, 1):
    diagonal, row[0] = row[0], i
    for j, cb in enumerate(b, 1):
      diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (ca != cb))
  return row[-1]


def anls(answer: str, targets: Sequence[str], threshold: float = 0.5) -> float:
  """Average normalised Levenshtein similarity of one question (ST-VQA, DocVQA).

  NL = levenshtein / length of the longer string; 1 - NL where NL < `threshold`, else 0; the best
  over `targets`. Compared in lower case with inner white space collapsed.
  """
  if not targets:
    raise ValueError("anls: no target answers")
  answer = " ".join(answer.lower().split())
  best = 0.0
  for target in targets:
    target = " ".join(target.lower().split())
    longest = max(len(answer), len(target))
    distance = levenshtein(answer, target) / longest if longest else 0.0
    best = max(best, 1 - distance if distance < threshold else 0.0)
  return best


_SIGMA = 6.0  # Of CIDEr-D's penalty for length, in bigrams.
Vectors = list[dict[tuple[str, ...], float]]  # tf-idf of the n-grams of a caption, for n = 1..4


def cider(answers: Sequence[str], targets: Sequence[Sequence[str]]) -> np.ndarray:
  """CIDEr of every picture, float64 [N] in 0..1 (arXiv 1411.5726, section 4).

  The mean over n-grams of 1 to 4 words, and over the captions of people, of the cosine of tf-idf
  vectors. The rarity of an n-gram is that among the pictures of this call, so that a single picture
  always has 0. Words are `text.caption_words`. What is published as CIDEr is `cider_d`.

  Args:
    answers: a caption for each picture. targets: those of people, one or more for each.

  Raises:
    ValueError: unequal numbers, or a picture without targets.
  """
  return _cider(answers, targets, _cosine)


def cider_d(answers: Sequence[str], targets: Sequence[Sequence[str]]) -> np.ndarray:
  """CIDEr-D of every picture, float64 [N] in 0..10: what papers print, times 100, as CIDEr.

  As `cider`, but an n-gram counts no more often than people wrote it, another length is punished,
  and the sum has a factor of 10. Reference: pycocoevalcap's `Cider`, whose tokenizer is another.
  """
  return 10 * _cider(answers, targets, _clipped_cosine)


def _cider(
  answers: Sequence[str], targets: Sequence[Sequence[str]], similarity: Callable
) -> np.ndarray:
  if len(answers) != len(targets):
    raise ValueError(f"cider: {len(answers)} answers, but targets of {len(targets)} pictures")
  if not all(targets):
    raise ValueError("cider: a picture has no target captions")
  people = [[_ngrams(text.caption_words(one)) for one in several] for several in targets]
  seen = Counter(gram for several in people for gram in {g for one in several for g in one})

  def vectors(grams: Counter) -> Vectors:
    out: Vectors = [{}, {}, {}, {}]
    for gram, count in grams.items():
      out[len(gram) - 1][gram] = count * np.log(len(people) / max(1, seen[gram]))
    return out

  scores = []
  for answer, several in zip(answers, people, strict=True):
    grams = _ngrams(text.caption_words(answer))
    mine = vectors(grams)
    scores.append(np.mean([similarity(mine, grams, vectors(one), one) for one in several]))
  return np.asarray(scores, np.float64)


def _ngrams(words: Sequence[str]) -> Counter:
  return Counter(tuple(words[i : i + n]) for n in range(1, 5) for i in range(len(words) - n + 1))


def _cosine(a: Vectors, _, b: Vectors, __) -> float:
  return _mean_cosine(a, b, lambda x, y: x * y)


def _clipped_cosine(a: Vectors, of_a: Counter, b: Vectors, of_b: Counter) -> float:
  bigrams = [sum(count for gram, count in x.items() if len(gram) == 2) for x in (of_a, of_b)]
  penalty = np.exp(-((bigrams[0] - bigrams[1]) ** 2) / (2 * _SIGMA**2))
  return penalty * _mean_cosine(a, b, lambda x, y: min(x, y) * y)


def _mean_cosine(a: Vectors, b: Vectors, product: Callable[[float, float], float]) -> float:
  total = 0.0
  for x, y in zip(a, b, strict=True):
    norm = np.sqrt(sum(v * v for v in x.values()) * sum(v * v for v in y.values()))
    if norm:
      total += sum(product(v, y[gram]) for gram, v in x.items() if gram in y) / norm
  return total / len(a)


def _number(string: str) -> float | None:
  try:
    value = float(string[:-1]) / 100 if string.endswith("%") else float(string)
  except ValueError:
    return None
  return value if np.isfinite(value) else None


def relaxed_accuracy(answer: str, target: str, tolerance: float = 0.05) -> float:
  """ChartQA: numbers may be off by `tolerance` of the target, all else must be equal.

  `%` at the end divides by 100. A target of 0, and text, must match exactly (in lower case).
  """
  answer, target = answer.strip().lower(), target.strip().lower()
  a, t = _number(answer), _number(target)
  if a is not None and t is not None and t != 0:
    return float(abs(a - t) / abs(t) <= tolerance)
  return float(answer == target)


def box_iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
  """Intersection over union of all pairs: `a` [N, 4], `b` [M, 4] -> float64 [N, M].

  A box without area (or with its corners swapped) has IoU 0 with everything.
  """
  a = np.asarray(a, np.float64).reshape(-1, 4)[:, None]
  b = np.asarray(b, np.float64).reshape(-1, 4)[None]
  sides = np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2])
  both = np.clip(sides, 0, None).prod(-1)
  union = sum(np.clip(x[..., 2:] - x[..., :2], 0, None).prod(-1) for x in (a, b)) - both
  return np.divide(both, union, out=np.zeros_like(both), where=union > 0)


def box_accuracy(answer: np.ndarray | None, target: np.ndarray, iou: float = 0.5) -> float:
  """Acc@`iou` of one expression: 1 if IoU >= `iou`. No box (None) counts 0."""
  return 0.0 if answer is None else float(box_iou(answer, target)[0, 0] >= iou)


def match_boxes(boxes: np.ndarray, targets: np.ndarray, iou: float) -> np.ndarray:
  """Greedy matching of COCO: bool [N], which of `boxes` (best score first) found a target.

  Every box takes the free target that it overlaps most, when their IoU is at least `iou`; of
  equal ones the last.
  """
  overlap = box_iou(boxes, targets)
  free = np.ones(overlap.shape[1], bool)
  hit = np.zeros(overlap.shape[0], bool)
  for i, row in enumerate(overlap):
    best = np.where(free, row, -1.0)
    if not free.any() or best.max() < min(iou, 1 - 1e-10):
      continue
    free[np.flatnonzero(best == best.max())[-1]] = False
    hit[i] = True
  return hit


def interpolated_precision(hit: np.ndarray, positives: int) -> float:
  """Average precision of ranked hits (bool [N], best first) by COCO's 101-point interpolation.

  The mean over recalls 0, 0.01 .. 1 of the greatest precision at that recall or above.
  """
  found = np.cumsum(hit)
  precision = found / np.arange(1, len(hit) + 1)
  precision = np.maximum.accumulate(precision[::-1])[::-1]
  at = np.searchsorted(found / positives, np.linspace(0, 1, 101), side="left")
  return float(np.append(precision, 0.0)[at].mean())


def average_precision(
  images: Sequence[dict], ious: Sequence[float] = COCO_IOUS, max_boxes: int = 100
) -> dict[float, float]:
  """COCO detection AP at each of `ious`, averaged over the classes that have targets.

  Args:
    images: one dict a picture: `boxes` [N, 4], `labels` [N], `scores` [N] (the answer) and
      `target_boxes` [M, 4], `target_labels` [M]. A model that writes boxes as text has no scores:
      use the order in the answer, `-position`. Equal scores rank in the order of the pictures.
    ious: thresholds.
    max_boxes: most boxes of a class in one picture, best first.

  Returns: AP by threshold. No target at all: every AP is 0.
  """
  classes = sorted({str(c) for image in images for c in image["target_labels"]})
  table = {iou: [] for iou in ious}
  for name in classes:
    scores, hits, positives = [], {iou: [] for iou in ious}, 0
    for image in images:
      targets = _of_class(image["target_boxes"], image["target_labels"], name)
      boxes = _of_class(image["boxes"], image["labels"], name)
      score = np.asarray(image["scores"], np.float64)[_chosen(image["labels"], name)]
      order = np.argsort(-score, kind="stable")[:max_boxes]
      scores.append(score[order])
      positives += len(targets)
      for iou in ious:
        hits[iou].append(match_boxes(boxes[order], targets, iou))
    rank = np.argsort(-np.concatenate(scores), kind="stable")
    for iou in ious:
      table[iou].append(interpolated_precision(np.concatenate(hits[iou])[rank], positives))
  return {iou: float(np.mean(values)) if values else 0.0 for iou, values in table.items()}


def _chosen(labels, name: str) -> np.ndarray:
  return np.flatnonzero([str(c) == name for c in labels])


def _of_class(boxes, labels, name: str) -> np.ndarray:
  return np.asarray(boxes, np.float64).reshape(-1, 4)[_chosen(labels, name)]


def mask_overlap(answer: np.ndarray | None, target: np.ndarray) -> tuple[int, int]:
  """Pixels in both masks and in either, bool [H, W]; an answer of None is an empty mask."""
  target = np.asarray(target, bool)
  answer = np.zeros_like(target) if answer is None else np.asarray(answer, bool)
  if answer.shape != target.shape:
    raise ValueError(f"masks of {answer.shape} and {target.shape} pixels cannot be compared")
  return int((answer & target).sum()), int((answer | target).sum())


def mask_iou(answer: np.ndarray | None, target: np.ndarray) -> float:
  """Intersection over union of two masks; both empty: 1."""
  both, either = mask_overlap(answer, target)
  return both / either if either else 1.0


def mean_iou(overlaps: Sequence[tuple[int, int]]) -> float:
  """mIoU (PaliGemma; gIoU in LISA): the mean of the pictures' IoU, from `mask_overlap` pairs."""
  return float(np.mean([both / either if either else 1.0 for both, either in overlaps]))


def cumulative_iou(overlaps: Sequence[tuple[int, int]]) -> float:
  """cIoU (oIoU): all intersections over all unions, from `mask_overlap` pairs."""
  both, either = np.sum(np.asarray(overlaps, np.float64).reshape(-1, 2), axis=0)
  return float(both / either) if either else 1.0


def ranks(queries: np.ndarray, items: np.ndarray, query_group, item_group) -> np.ndarray:
  """Rank (0 = first) of the best item of each query's group, int64 [N].

  Args:
    queries: embeddings [N, D], L2-normalised.
    items: embeddings [M, D], L2-normalised.
    query_group: [N]; an item is right for a query when their groups are equal.
    item_group: [M].

  Ties count against the query, so that a model that gives one embedding to all ranks last. A
  query without a right item gets rank M.
  """
  query_group, item_group = np.asarray(query_group), np.asarray(item_group)
  out = np.zeros(len(queries), np.int64)
  for start in range(0, len(queries), 1024):  # the whole similarity matrix may not fit
    rows = slice(start, start + 1024)
    similarity = np.asarray(queries[rows], np.float64) @ np.asarray(items, np.float64).T
    right = query_group[rows, None] == item_group[None]
    best = np.where(right, similarity, -np.inf).max(1, keepdims=True)
    out[rows] = (~(similarity < best - 1e-9) & ~right).sum(1)  # NaN counts against as well
    out[rows][~right.any(1)] = len(items)
  return out


def recall_at(rank: np.ndarray, k: int) -> float:
  """R@k: the share of queries with a right item among their first `k` (see `ranks`).

  Image to text, any of the image's captions counts; text to image, the caption's image.
  """
  return float((np.asarray(rank) < k).mean())


def class_embeddings(
  embed: Callable[[list[str]], np.ndarray], classes: Sequence, templates: Sequence[str]
) -> np.ndarray:
  """Zero-shot class embeddings, float64 [classes, D]: L2-normalised means over the templates.

  Args:
    embed: texts -> L2-normalised embeddings [n, D].
    classes: a name or several names (synonyms) for each class.
    templates: texts with one `{}`, where the name goes.
  """
  texts, owner = [], []
  for number, name in enumerate(classes):
    for one in (name,) if isinstance(name, str) else name:
      for template in templates:
        texts.append(template.replace("{}", one))
        owner.append(number)
  vectors = np.asarray(embed(texts), np.float64)
  mean = np.zeros((len(classes), vectors.shape[1]))
  np.add.at(mean, np.asarray(owner), vectors)
  return mean / np.maximum(np.linalg.norm(mean, axis=1, keepdims=True), 1e-12)


def top_k(images: np.ndarray, classes: np.ndarray, labels: np.ndarray, k: int) -> np.ndarray:
  """Zero-shot hits, bool [N]: is the label among the `k` classes nearest to the image.

  `images` [N, D] and `classes` [C, D] are L2-normalised, `labels` int [N].
  """
  return ranks(images, classes, labels, np.arange(len(classes))) < k


_BY_NAME = {
  "exact": lambda answer, targets: max(exact_match(answer, t) for t in targets),
  "vqa": vqa_accuracy,
  "textvqa": lambda answer, targets: vqa_accuracy(answer, targets, always_normalise=True),
  "vqa_simple": vqa_simple,
  "anls": anls,
  "relaxed": lambda answer, targets: max(relaxed_accuracy(answer, t) for t in targets),
}


def text_score(name: str) -> Callable[[str, Sequence[str]], float]:
  """The score of that name, as a function of an answer and its possible targets."""
  return names.lookup("text score", name, _BY_NAME)
