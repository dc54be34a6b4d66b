"""A run that began with a checkpoint of others, in the form of that checkpoint again."""

import copy
import pathlib
from collections.abc import Mapping
from typing import Any

import jax

from bigvlm import lora
from bigvlm.hub import load as hub_load
from bigvlm.hub.model import HubModel
from bigvlm.trainers import evaluate, saved
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
    like: that checkpoint; by default what `init.source` of one of the run's stages names.
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
  """`like`, or the first checkpoint of others that a stage of a run starts from.

  Raises:
    ValueError: there is none.
  """
  config: Mapping[str, Any] = saved.locate(workdir)[0]
  sources = [s["init"]["source"] for s in config["stages"]]
  found = like or next((s for s in sources if hub_load.is_checkpoint(s)), None)
  if found is None:
    raise ValueError(f"{workdir} started from no checkpoint of others; name one with --like")
  return found


def _fitted(params: Any, trained: Any, run: str, like: str) -> Any:
  """The trained tensors as the tree of `params`, exactly as many and of the same shapes."""
  want, have = tree_lib.flatten(params), tree_lib.flatten(trained)
  for name in sorted(want.keys() | have.keys()):
    a, b = (t.get(name) for t in (have, want))
    if a is None or b is None or a.shape != b.shape:
      shapes = [None if x is None else list(x.shape) for x in (a, b)]
      raise ValueError(f"tensor {name} is {shapes[0]} in {run} and {shapes[1]} in {like}")
  return jax.tree.unflatten(jax.tree.structure(params), [have[name] for name in want])
