"""What a checkpoint is: its sizes, and which of its tensors became which parameter."""

import math

from bigvlm import zoo
from bigvlm.ckpt import transfer
from bigvlm.ckpt.rules import split_row
from bigvlm.hub import load
from bigvlm.utils import tree


def info(name: str) -> str:
  """A table of a checkpoint: parameters by part, and for every tensor the parameter it becomes.

  Args:
    name: as `bigvlm.load` takes it. Reads the headers of the files only; of a checkpoint on the hub
      nothing more is downloaded.

  Raises:
    ValueError, FileNotFoundError: as `bigvlm.load`.
  """
  system, source, _ = load.outline(name)
  config = load.plain_config(system, "float32")
  shapes = tree.flatten(zoo.abstract_params(config))
  bindings = system.map.bind(shapes)
  origin = transfer.census(system.map, source, bindings)
  specs = source.specs()
  params = sum(math.prod(leaf.shape) for leaf in shapes.values())
  stored = sum(math.prod(s.shape) * s.dtype.itemsize for s in specs.values())
  lines = [
    f"{name}: {system.model['kind']}, {params:,} parameters, {len(specs)} tensors, "
    f"{stored / 2**30:.2f} GiB in {source.path}"
  ]
  parts: dict[str, int] = {}
  for leaf_name, leaf in shapes.items():
    part = "/".join(leaf_name.split("/")[: 2 if leaf_name.startswith("encoders/") else 1])
    parts[part] = parts.get(part, 0) + math.prod(leaf.shape)
  lines += [f"  {part:<24}{count:>16,}" for part, count in parts.items()]
  lines.append("")
  rows = []
  for binding in bindings:
    for n, key in enumerate(binding.keys):
      tensor, row = split_row(key)
      spec = origin.specs[tensor]
      at = "" if row is None else f"[{row}]"
      into = ", ".join(f"{d}[{n}]" if binding.stacked else d for d in binding.dsts)
      how = f"  {binding.axes}" if binding.axes else ""
      rows.append((origin.names[tensor] + at, f"{list(spec.shape)}", str(spec.dtype), into + how))
  rows += [
    (origin.names[key], f"{list(x.shape)}", str(x.dtype), "(carried: no forward pass reads it)")
    for key, x in origin.carried.items()
  ]
  tied = dict(system.map.tied)
  rows += [
    (
      origin.names[key],
      f"{list(origin.specs[key].shape)}",
      str(origin.specs[key].dtype),
      f"(tied to {tied[key]})",
    )
    for key in origin.aliases
  ]
  widths = [max(len(row[i]) for row in rows) for i in range(3)]
  for row in rows:
    cells = "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=False))
    lines.append(f"  {cells}  {row[3]}")
  return "\n".join(lines)
