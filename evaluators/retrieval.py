"""Image-text retrieval with a two-tower model."""

import numpy as np

from bigvlm.evaluators import base, scores

_AT = (1, 5, 10)


class Retrieval(base.Evaluator):
  """R@1, 5, 10 both ways over the whole set.

  An example has `image` and `text`: one caption or several. With `same_text`, pictures with equal
  captions count as right for each other (otherwise a set with repeated captions cannot reach
  1.0). Metrics: `i2t_r1` .. (image to text: any of its captions) and `t2i_r1` .. (text to image).
  """

  fields = dict(same_text=False)

  def rows(self, model, examples):
    batch = int(self.cfg["batch_size"])
    images = model.embed_image([e["image"] for e in examples], batch_size=batch)
    texts = [captions(self.want(e, "text")) for e in examples]
    flat = model.embed_text([one for many in texts for one in many], batch_size=batch)
    ends = np.cumsum([len(many) for many in texts])
    parts = np.split(np.asarray(flat), ends[:-1])
    return [
      dict(image=image, texts=vectors, captions=many)
      for image, vectors, many in zip(np.asarray(images), parts, texts, strict=True)
    ]

  def _groups(self, rows):
    """Which images and captions belong together: [images], [captions] of group numbers."""
    flat = [(number, one) for number, row in enumerate(rows) for one in row["captions"]]
    if not self.cfg["same_text"]:
      return np.arange(len(rows)), np.array([number for number, _ in flat])
    known = {}
    group = [known.setdefault(row["captions"][0], len(known)) for row in rows]
    return np.array(group), np.array([known.get(one, group[number]) for number, one in flat])

  def summarise(self, rows):
    images = np.stack([row["image"] for row in rows])
    texts = np.concatenate([row["texts"] for row in rows])
    of_image, of_text = self._groups(rows)
    i2t = scores.ranks(images, texts, of_image, of_text)
    t2i = scores.ranks(texts, images, of_text, of_image)
    out = {}
    for way, rank in (("i2t", i2t), ("t2i", t2i)):
      for k in _AT:
        if k < len(rows):  # with as many places as pictures nothing can be missed
          out[f"{way}_r{k}"] = (scores.recall_at(rank, k), 1)
    return out

  def predictions(self, model, n):
    """As `Evaluator.predictions`; the answer is the nearest caption of the whole set."""
    rows = self.collect(model, len(self))
    texts = np.concatenate([row["texts"] for row in rows])
    flat = [one for row in rows for one in row["captions"]]
    of_image, of_text = self._groups(rows)
    records = []
    for i, row in enumerate(rows[:n]):
      nearest = int((texts @ row["image"]).argmax())
      records.append(
        base.prediction(
          image=self.example(row["i"])["image"],
          prompt=f"nearest of {len(flat)} captions",
          target=row["captions"][0],
          answer=flat[nearest],
          right=of_text[nearest] == of_image[i],
        )
      )
    return records


def captions(text) -> list[str]:
  """One caption or several as a list."""
  return [text] if isinstance(text, str) else [str(one) for one in text]
