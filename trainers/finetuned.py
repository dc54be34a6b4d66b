"""A run that began with a checkpoint of others, in the form of that checkpoint again."""

import copy
import pathlib
import re
from typing import Any

import jax

from bigvlm import lora
from bigvlm.hub import load as hub_load
from bigvlm.hub.model import HubModel
from bigvlm.trainers import evaluate, saved, stages
from bigvlm.utils import log
from bigvlm.utils import tree as tree_lib


def load(
  workdir: str | pathlib.Path,
  *,
  like: str | None = None,
  dtype: str | None = None,
  adapters: bool = False,
) -> HubModel:
  """The model of a run with the names, the files and the dtypes of the checkpoint it began with.

  Args:
    workdir: a workdir, or a checkpoint folder in it (see `saved.locate`).
    like: that checkpoint; by default what `init.source` of the stage, or of one before it, names.
    dtype: of the floating tensors; None = those of the checkpoint.
    adapters: whether LoRA adapters stay beside their kernels; they are merged into them else.

  Raises:
    ValueError: the run names no such checkpoint, or trained a model of other shapes (names the
      tensor and both).
  """
  like = base(workdir, like)
  trained = evaluate.load(workdir)
  model = hub_load.load(like)
  if "image" in trained.config["processor"] and model.system.image_size is not None:
    size = trained.config["processor"]["image"]["size"]
    size = (size, size) if isinstance(size, int) else tuple(size)
    if size != model.system.image_size:
      model = hub_load.resized(model, size)
  out = copy.copy(model)
  params = lora.strip(trained.params) if adapters else lora.merge(trained.params)[0]
  out.params = _fitted(model.params, params, str(workdir), like)
  if adapters:
    flat = tree_lib.flatten(trained.params).items()
    beside = {name: x for name, x in flat if lora.is_leaf(name)}
    out.params = tree_lib.unflatten({**tree_lib.flatten(out.params), **beside})
  out.dtype = dtype
  return out


def base(workdir: str | pathlib.Path, like: str | None = None) -> str:
  """`like`, or the checkpoint of others that a stage of a run, or the last before it, starts from.

  Raises:
    ValueError: there is none.
  """
  sources = [init["source"] for init in _starts(workdir)]
  found = like or next((s for s in sources[::-1] if hub_load.is_checkpoint(s)), None)
  if found is None:
    raise ValueError(f"{workdir} started from no checkpoint of others; name one with --like")
  return found


def _starts(workdir: str | pathlib.Path) -> list[dict[str, Any]]:
  """`init` of the stage that `saved.locate` finds, and of those before it, in their order."""
  config, path, stage, _ = saved.locate(workdir)
  return [s.cfg["init"] for s in stages.resolve(config, path)[: stage.index + 1]]


def _fitted(params: Any, trained: Any, run: str, like: str) -> Any:
  """The trained tensors as the tree of `params`, exactly as many and of the same shapes.

  What a stage drew anew and the checkpoint has no place for (`model` fields of the config's own,
  that only training needs) is left out, and said.
  """
  want, have = tree_lib.flatten(params), tree_lib.flatten(trained)
  drawn = [re.compile(pattern) for init in _starts(run) for pattern in init["fresh"]]
  out = [n for n in have if n not in want and any(p.fullmatch(n) for p in drawn)]
  if out:
    log.line(f"{like} has no place for what training alone needs: {', '.join(out)}")
  have = {name: x for name, x in have.items() if name not in out}
  for name in sorted(want.keys() | have.keys()):
    a, b = (t.get(name) for t in (have, want))
    if a is None or b is None or a.shape != b.shape:
      shapes = [None if x is None else list(x.shape) for x in (a, b)]
      raise ValueError(f"tensor {name} is {shapes[0]} in {run} and {shapes[1]} in {like}")
  return jax.tree.unflatten(jax.tree.structure(params), [have[name] for name in want])
