"""Detection: boxes that a model writes as `<loc>` tokens, scored as COCO does."""

from bigvlm.evaluators import base, scores
from bigvlm.processing import boxes


class Detection(base.Evaluator):
  """COCO-style average precision of written boxes.

  An example has `prefix` ("detect 7"), `boxes` [n, 4] (y0 x0 y1 x1 in [0, 1]) and `labels` [n].
  Text has no scores: boxes are ranked by their place in the answer (the first of every picture
  before the second of any). A box without area or with a number out of range is a false find;
  what is no box at all is ignored. Metrics: `ap50` (IoU 0.5) and `ap` (mean of IoU
  0.50:0.05:0.95), means over the classes.
  """

  fields = base.WRITING

  def rows(self, model, examples):
    answers = self.generate(model, examples)
    return [self._row(e, answer) for e, answer in zip(examples, answers, strict=True)]

  def _row(self, example, answer):
    found = boxes.parse(answer)
    target_boxes = [[float(v) for v in box] for box in self.want(example, "boxes")]
    target_labels = [str(label) for label in self.want(example, "labels")]
    return dict(
      answer=answer,
      boxes=[one.box if one.valid else (0.0,) * 4 for one in found],
      labels=[one.name for one in found],
      scores=[-place for place in range(len(found))],
      target_boxes=target_boxes,
      target_labels=target_labels,
    )

  def summarise(self, rows):
    table = scores.average_precision(rows)
    return dict(ap50=(table[scores.COCO_IOUS[0]], 1), ap=(sum(table.values()), len(table)))

  def record(self, example, row):
    targets = list(zip(row["target_boxes"], row["target_labels"], strict=True))
    return dict(
      image=example["image"],
      prompt=example["prefix"],
      target=example.get("suffix", ""),
      answer=row["answer"],
      boxes=list(zip(row["boxes"], row["labels"], strict=True)),
      target_boxes=targets,
      right=all_found(row),
    )


def all_found(row: dict, iou: float = 0.5) -> bool:
  """Whether the boxes of the answer are the targets: each found once, with its name, no more."""
  if sorted(row["labels"]) != sorted(row["target_labels"]):
    return False
  for name in set(row["labels"]):
    found = [box for box, label in zip(row["boxes"], row["labels"], strict=True) if label == name]
    targets = zip(row["target_boxes"], row["target_labels"], strict=True)
    if not scores.match_boxes(found, [box for box, label in targets if label == name], iou).all():
      return False
  return True
