"""The objectives by name, and how a config makes one."""

import dataclasses
import importlib
from collections.abc import Callable, Mapping

from jax.sharding import Mesh

from bigvlm.utils import names

# kind -> "module:class"; imported when asked for.
OBJECTIVES = {
  "sigmoid": "bigvlm.objectives.sigmoid:Sigmoid",
  "softmax": "bigvlm.objectives.softmax:Softmax",
  "prefix_lm": "bigvlm.objectives.lm:PrefixLM",
  "mask_vq": "bigvlm.objectives.mask_vq:MaskVQ",
  "dpo": "bigvlm.objectives.dpo:DPO",
  "scores": "bigvlm.objectives.matching:Scores",
  "match": "bigvlm.objectives.matching:Match",
  "total": "bigvlm.objectives.total:Total",
}


def make(cfg: Mapping, mesh: Mesh | None = None, where: str = "objective") -> Callable:
  """Makes an objective.

  Args:
    cfg: `dict(kind=, **fields of its class)`. `kind="total"` has `parts=dict(NAME=dict(kind=,
      weight=1.0, ...), ...)` instead, objectives that are weighted and summed.
    mesh: the mesh that batches are cut over.
    where: config field, for messages.

  Returns:
    `objective(out: Outputs, batch: Batch) -> (loss float32 [], {metric: (sum, count)})`.

  Raises:
    ValueError: an unknown kind or field, with the nearest names.
  """
  fields = dict(cfg)
  if "kind" not in fields:
    raise ValueError(f"{where} says no kind; kinds: {', '.join(sorted(OBJECTIVES))}")
  kind = fields.pop("kind")
  if kind not in OBJECTIVES:
    raise ValueError(f"{where}.kind: {names.unknown('objective', kind, OBJECTIVES)}")
  module, name = OBJECTIVES[kind].split(":")
  cls = getattr(importlib.import_module(module), name)
  known = {field.name for field in dataclasses.fields(cls)}
  for key in fields:
    if key not in known - {"mesh"}:
      raise ValueError(f"{where} {kind!r}: {names.unknown('field', key, known - {'mesh'})}")
  if kind == "total":
    fields["parts"] = _parts(fields.get("parts"), mesh, where)
  if "mesh" in known:
    fields["mesh"] = mesh
  return cls(**fields)


def _parts(parts: Mapping | None, mesh: Mesh | None, where: str) -> tuple:
  if not parts:
    raise ValueError(f"{where}.parts is empty; say dict(NAME=dict(kind=, weight=, ...), ...)")
  out = []
  for name, part in parts.items():
    part = dict(part)
    weight = float(part.pop("weight", 1.0))
    made = make(part, mesh, f"{where}.parts.{name}")
    if getattr(made, "pairs", False):
      raise ValueError(
        f"{where}.parts.{name}: {part['kind']!r} is for batches of pairs and stands alone; its "
        "other losses are fields of its own"
      )
    out.append((name, weight, made))
  return tuple(out)
