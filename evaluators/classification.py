"""Zero-shot classification with a two-tower model."""

import numpy as np

from bigvlm.evaluators import base, scores


class ZeroShot(base.Evaluator):
  """Accuracy of the class whose text is nearest to the image.

  Fields: `classes` (names; several names for a class are averaged), `templates` (texts with one
  `{}`; their embeddings are averaged). An example has `image` and `label`, the class's number.
  Metrics: `top1`, and `top5` where there are more than five classes.
  """

  fields = dict(classes=(), templates=("{}",))

  def __init__(self, cfg):
    super().__init__(cfg)
    self.classes = [c if isinstance(c, str) else tuple(c) for c in self.cfg["classes"]]
    self.templates = list(self.cfg["templates"])
    if len(self.classes) < 2:
      raise ValueError(f"{self.label}: field 'classes' needs at least two names")
    for template in self.templates or [""]:
      if template.count("{}") != 1:
        raise ValueError(f"{self.label}: template {template!r} needs {{}} once, for the class name")

  def collect(self, model, n):
    def embed(texts):
      return model.embed_text(texts, batch_size=int(self.cfg["batch_size"]))

    self._table = scores.class_embeddings(embed, self.classes, self.templates)
    return super().collect(model, n)

  def rows(self, model, examples):
    batch = int(self.cfg["batch_size"])
    vectors = model.embed_image([e["image"] for e in examples], batch_size=batch)
    labels = np.array([self._label(e) for e in examples])
    vectors = np.asarray(vectors, np.float64)
    ranks = scores.ranks(vectors, self._table, labels, np.arange(len(self.classes)))
    nearest = (vectors @ self._table.T).argmax(1)
    return [
      dict(rank=int(rank), answer=int(answer)) for rank, answer in zip(ranks, nearest, strict=True)
    ]

  def _label(self, example) -> int:
    label = int(self.want(example, "label"))
    if not 0 <= label < len(self.classes):
      raise ValueError(
        f"{self.label}: example {example.get('id', '?')} has label {label}, but there are"
        f" {len(self.classes)} classes"
      )
    return label

  def summarise(self, rows):
    out = dict(top1=(sum(row["rank"] < 1 for row in rows), len(rows)))
    if len(self.classes) > 5:
      out["top5"] = (sum(row["rank"] < 5 for row in rows), len(rows))
    return out

  def record(self, example, row):
    return dict(
      image=example["image"],
      prompt=f"which of {len(self.classes)} classes",
      target=self._name(self._label(example)),
      answer=self._name(row["answer"]),
      right=row["rank"] == 0,
    )

  def _name(self, number: int) -> str:
    name = self.classes[number]
    return name if isinstance(name, str) else name[0]
