"""Pairs of answers: rows that hold an example with its `suffix` and again with its `rejected`."""

import copy
from typing import Any

import numpy as np

from bigvlm.processing import processor
from bigvlm.processing.image import BadExample


class Pairs(processor.Processor):
  """A processor whose rows are two of another's: arrays [2, ...], the chosen answer first.

  Both have the same randomness. `bad` stays one number a row.

  Attributes:
    one: the processor of a single example.
  """

  def __init__(self, one: Any):
    self.one = one
    self.random, self.tokenizer = one.random, one.tokenizer

  def row(self, example, rng):
    if not isinstance(example.get("rejected"), str):
      raise BadExample("has no text in its field 'rejected'", str(example.get("id", "")))
    again = copy.deepcopy(rng)
    chosen, cut = self.one.row(example, rng)
    rejected, also = self.one.row({**example, "suffix": example["rejected"]}, again)
    return _join(chosen, rejected), cut or also

  def blank(self):
    return _join(*[self.one.blank()] * 2)


def _join(chosen: processor.Arrays, rejected: processor.Arrays) -> processor.Arrays:
  rows = {k: np.stack([v, rejected[k]]) for k, v in chosen.items() if k != "bad"}
  return rows | {"bad": chosen["bad"]}


def apart(arrays: dict[str, Any]) -> dict[str, Any]:
  """Arrays [B, 2, ...] of a batch of pairs as [2 B, ...]: rows 2n and 2n + 1 are pair n."""
  return {k: v if k == "bad" else v.reshape(-1, *v.shape[2:]) for k, v in arrays.items()}
