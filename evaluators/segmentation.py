"""Referring segmentation: masks that a model writes as `<loc>` and `<seg>` tokens."""

import numpy as np

from bigvlm.evaluators import base, scores
from bigvlm.processing import boxes, masks

_SHARES = (0.5, 0.7, 0.9)


class Segmentation(base.Evaluator):
  """Overlap of the first written mask with the example's `mask` (bool [H, W]).

  Four `<loc>` give the box; the codec (`codec`, an .npz; default: the one that `data` names) turns
  16 `<seg>` into a 64 x 64 mask, which is pasted at the size of the picture. An answer that is
  not a box and 16 codes is an empty mask: it counts 0. Metrics: `miou` (mean of the pictures),
  `ciou` (all intersections over all unions), `p50`, `p70`, `p90` (share of pictures with IoU of at
  least that), `box50` (Acc@0.5 of the boxes; where the example has `boxes`).
  """

  fields = base.WRITING | dict(max_new_tokens=32, codec="")

  def __init__(self, cfg):
    super().__init__(cfg)
    self._path = self.cfg["codec"]
    if not self._path and hasattr(self.cfg["data"], "get"):  # a record, not a source
      self._path = self.cfg["data"].get("codec", "")
    if not self._path:
      raise ValueError(f"{self.label}: field 'codec' is missing: the path of a mask codec (.npz)")
    self._codec = None

  def rows(self, model, examples):
    answers = self.generate(model, examples)
    return [self._row(e, answer) for e, answer in zip(examples, answers, strict=True)]

  def mask(self, answer: str, height: int, width: int) -> np.ndarray | None:
    """The first mask of an answer, bool [height, width], or None."""
    self._codec = self._codec or masks.load(self._path)
    return first_mask(self._codec, answer, height, width)

  def _row(self, example, answer):
    target = np.asarray(self.want(example, "mask"), bool)
    both, either = scores.mask_overlap(self.mask(answer, *target.shape), target)
    row = dict(answer=answer, both=both, either=either)
    if len(example.get("boxes", ())) == 1:
      found = boxes.parse(answer)
      usable = found and found[0].valid
      row["box"] = scores.box_accuracy(found[0].box if usable else None, example["boxes"][0])
    return row

  def summarise(self, rows):
    overlaps = [(row["both"], row["either"]) for row in rows]
    ious = [both / either if either else 1.0 for both, either in overlaps]
    out = dict(
      miou=(scores.mean_iou(overlaps), 1),
      ciou=(scores.cumulative_iou(overlaps), 1),
    )
    for share in _SHARES:
      out[f"p{share * 100:.0f}"] = (sum(iou >= share for iou in ious), len(ious))
    found = [row["box"] for row in rows if "box" in row]
    out["box50"] = (sum(found), len(found))
    return out

  def record(self, example, row):
    target = np.asarray(example["mask"], bool)
    labels = example.get("labels") or [""] * len(example.get("boxes", ()))
    return dict(
      image=example["image"],
      prompt=example["prefix"],
      target=example.get("suffix", ""),
      answer=row["answer"],
      boxes=[(one.box, one.name) for one in boxes.parse(row["answer"])[:1] if one.valid],
      mask=self.mask(row["answer"], *target.shape),
      target_boxes=list(zip(example.get("boxes", ()), labels, strict=True)),
      target_mask=target,
      right=row["either"] == 0 or row["both"] / row["either"] >= 0.5,
    )


def first_mask(codec: masks.Params, answer: str, height: int, width: int) -> np.ndarray | None:
  """The mask of an answer's first object, bool [height, width]; None if it is not one."""
  found = boxes.parse(answer)
  if not found or not found[0].valid or found[0].codes is None:
    return None
  crop = masks.decode(codec, np.array([found[0].codes]))[0]
  return masks.paste(crop, found[0].box, height, width)
