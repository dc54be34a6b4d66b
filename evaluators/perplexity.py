"""How well a model predicts the right answers, without generating."""

import math

import numpy as np

from bigvlm.evaluators import base

_BLANK = np.zeros((8, 8, 3), np.uint8)


class Perplexity(base.Evaluator):
  """Likelihood of `suffix` after `prefix` and the image.

  Metrics: `nll` (mean over the examples of -log p(suffix and end), nats) and `perplexity`
  (exp of the mean over the tokens).
  """

  def rows(self, model, examples):
    logp = model.score(
      [e["image"] for e in examples],
      [self.want(e, "prefix") for e in examples],
      [self.want(e, "suffix") for e in examples],
      batch_size=int(self.cfg["batch_size"]),
    )
    return [
      dict(nll=-float(value), tokens=tokens(model.processor, e))
      for value, e in zip(logp, examples, strict=True)
    ]

  def summarise(self, rows):
    total = sum(row["nll"] for row in rows)
    count = sum(row["tokens"] for row in rows)
    # exp overflows beyond 709: a model that far off is reported as the greatest float there is.
    worst = math.log(np.finfo(np.float64).max)
    return dict(nll=(total, len(rows)), perplexity=(math.exp(min(total / count, worst)), 1))

  def predictions(self, model, n):
    """None: there are no answers to look at."""
    return []


def tokens(processor, example: dict) -> int:
  """How many tokens of the example are scored, its end included."""
  arrays = processor(example | dict(image=_BLANK), np.random.default_rng(0))
  return int((arrays["weights"] > 0).sum())
