"""Evaluators of written answers: captions and open VQA."""

from collections import defaultdict

from bigvlm.evaluators import base, scores


class Caption(base.Evaluator):
  """Captions against the example's `answers` (several people's), `answer` or `suffix`.

  Metrics: `exact` (equal strings), `anls` (how near the letters are) and `cider` (CIDEr-D over all
  examples, 0..10; papers print it times 100; see `scores.cider_d`).
  """

  fields = base.WRITING

  def rows(self, model, examples):
    answers = self.generate(model, examples)
    rows = []
    for example, answer in zip(examples, answers, strict=True):
      targets = targets_of(self, example)
      exact = max(scores.exact_match(answer, target) for target in targets)
      anls = scores.anls(answer, targets)
      rows.append(dict(answer=answer, targets=targets, exact=exact, anls=anls))
    return rows

  def summarise(self, rows):
    out = {key: (sum(row[key] for row in rows), len(rows)) for key in ("exact", "anls")}
    cider = scores.cider_d([row["answer"] for row in rows], [row["targets"] for row in rows])
    return out | dict(cider=(cider.sum(), len(rows)))

  def record(self, example, row):
    return dict(
      image=example["image"],
      prompt=example["prefix"],
      target=targets_of(self, example)[0],
      answer=row["answer"],
      right=row["exact"] == 1,
    )


class VQA(base.Evaluator):
  """Short answers to questions.

  An example has `answers` (several people's) or `answer` or `suffix`, and may have `kind`. Field
  `score` is one of exact, vqa (official VQA v2), textvqa, vqa_simple, anls, relaxed (ChartQA).
  Metrics: `acc`, the mean over all questions, and one of each kind's name.
  """

  fields = base.WRITING | dict(max_new_tokens=32, score="exact")

  def __init__(self, cfg):
    super().__init__(cfg)
    self._score = scores.text_score(self.cfg["score"])

  def rows(self, model, examples):
    answers = self.generate(model, examples)
    return [
      dict(answer=answer, kind=str(e.get("kind", "")), acc=self._score(answer, targets_of(self, e)))
      for e, answer in zip(examples, answers, strict=True)
    ]

  def summarise(self, rows):
    out = defaultdict(lambda: (0.0, 0))
    for row in rows:
      for key in dict.fromkeys(("acc", row["kind"] or "acc")):
        total, count = out[key]
        out[key] = total + row["acc"], count + 1
    return dict(out)

  def record(self, example, row):
    targets = targets_of(self, example)
    return dict(
      image=example["image"],
      prompt=example["prefix"],
      target=max(targets, key=targets.count),
      answer=row["answer"],
      right=row["acc"] >= 0.5,
    )


def targets_of(evaluator: base.Evaluator, example: dict) -> list[str]:
  """The right answers of an example."""
  found = evaluator.want(example, "answers", "answer", "suffix")
  targets = [found] if isinstance(found, str) else [str(one) for one in found]
  if not targets:
    raise ValueError(f"{evaluator.label}: example {example.get('id', '?')} has no answers")
  return targets
