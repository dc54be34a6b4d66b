"""All evaluators by the `kind` that configs name."""

from collections.abc import Mapping

from bigvlm.evaluators import (
  base,
  classification,
  detection,
  generation,
  perplexity,
  retrieval,
  segmentation,
)
from bigvlm.utils import names

EVALUATORS = {
  "caption": generation.Caption,
  "detection": detection.Detection,
  "perplexity": perplexity.Perplexity,
  "retrieval": retrieval.Retrieval,
  "segmentation": segmentation.Segmentation,
  "vqa": generation.VQA,
  "zeroshot": classification.ZeroShot,
}


def make(cfg: Mapping) -> base.Evaluator:
  """The evaluator of `cfg.kind`; raises a ValueError with the nearest names if there is none."""
  if "kind" not in cfg:
    raise ValueError(f"evaluator {cfg.get('name', '?')!r}: field 'kind' is missing")
  return names.lookup("evaluator", cfg["kind"], EVALUATORS)(cfg)
