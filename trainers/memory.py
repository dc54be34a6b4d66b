"""What the stages of a config hold on every device, from shapes alone."""

import math
import pathlib
import tempfile
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from bigvlm import config as config_lib
from bigvlm.parallel import mesh as mesh_lib
from bigvlm.processing import tokenizer
from bigvlm.trainers import stages
from bigvlm.utils import tree as tree_lib

_GIB = 2**30
_COLUMNS = ("params", "frozen", "gradients", "opt", "ema")


def held(tree: Any) -> int:
  """Bytes of a tree of abstract arrays on one device; each has a sharding."""
  return sum(
    math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(tree)
  )


def table(config: Any, *, mesh: dict[str, int] | None = None, compiled: bool = False) -> str:
  """GiB a device for every stage: parameters that train and that are frozen (those of a reference
  too), gradients, optimiser state, average, and what the compiled step needs besides.

  Nothing is allocated and no data or tokenizer file is opened.

  Args:
    config: a checked config.
    mesh: sizes of the axes in place of the config's.
    compiled: compile every step for XLA's own plan of its temporaries. It is the plan of this
      machine's kind of device, and takes minutes for large models.

  Raises:
    ValueError: a config that does not build; a mesh larger than the devices there are.
  """
  with tempfile.TemporaryDirectory() as folder:
    path = pathlib.Path(folder) / "tokenizer.model"
    tokenizer.train(["any words will do"], path, vocab_size=300)
    plan = stages.resolve(_without_data(config, str(path)), pathlib.Path(folder))
    rows = []
    for stage in plan:
      if mesh:
        stage.mesh.update(mesh)
      built = stages.build(config_lib.plain(config), stage, pathlib.Path(folder))
      rows.append(_row(built, compiled))
  devices = math.prod(built.mesh.shape.values())
  head = ("stage", "trainable", *_COLUMNS, *(("step",) if compiled else ()), "GiB a device")
  cells = [head, *rows]
  widths = [max(len(row[i]) for row in cells) for i in range(len(head))]
  lines = [f"{devices} devices, mesh {dict(built.mesh.shape)}; GiB on each:"]
  for row in cells:
    first, *rest = (
      f"{cell:<{w}}" if i == 0 else f"{cell:>{w}}"
      for i, (cell, w) in enumerate(zip(row, widths, strict=True))
    )
    lines.append("  " + "  ".join([first, *rest]))
  return "\n".join(lines)


def _without_data(config: Any, path: str) -> Any:
  """The config with a length in steps and a tokenizer that is there: no number here needs more."""
  out = config_lib.check(config)
  for stage in out.stages:
    stage.steps, stage.examples, stage.epochs = 1, 0, 0.0
    if "tokenizer" in stage.processor:
      stage.processor.tokenizer = dict(kind="sentencepiece", path=path, extra=False)
  if "tokenizer" in out.processor:
    out.processor.tokenizer = dict(kind="sentencepiece", path=path, extra=False)
  return out


def _row(built: stages.Built, compiled: bool) -> Sequence[str]:
  state = built.state
  parts = dict(
    params=held(state.params),
    frozen=held(state.frozen) + held(state.reference),
    gradients=held(state.params),
    opt=held(state.opt),
    ema=held(state.ema),
  )
  total = sum(parts.values())
  extra = []
  if compiled:
    plan = built.step.lower(state, _batch(built)).compile().memory_analysis()
    # Gradients are among the temporaries.
    step = max(plan.temp_size_in_bytes - parts["gradients"], 0)
    total += step
    extra = [_gib(step)]
  count = sum(x.size for x in tree_lib.flatten(state.params).values())
  shown = [_gib(parts[name]) for name in _COLUMNS]
  return (built.stage.name, f"{count:,}", *shown, *extra, _gib(total))


def _batch(built: stages.Built) -> dict[str, jax.ShapeDtypeStruct]:
  """Shapes of a global batch as the step takes it, cut over the mesh."""
  rows, layout = built.stage.cfg["batch_size"], mesh_lib.batch_sharding(built.mesh)
  spec = {name: item for name, item in built.processor.spec().items() if name != "ids"}
  spec["vote"] = ((), np.int32)
  return {
    name: jax.ShapeDtypeStruct((rows, *shape), dtype, sharding=layout)
    for name, (shape, dtype) in spec.items()
  }


def _gib(size: float) -> str:
  return f"{size / _GIB:.3g}"
