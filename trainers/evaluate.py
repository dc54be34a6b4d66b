"""Evaluators over a model: during training, or from a checkpoint of a run."""

import contextlib
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import jax

from bigvlm import api
from bigvlm import config as config_lib
from bigvlm.data import mixture
from bigvlm.evaluators import base, table
from bigvlm.trainers import launch, layered, report, saved, stages, together
from bigvlm.trainers import state as state_lib
from bigvlm.utils import tree as tree_lib

_SHOWN = 24  # Predictions of an evaluator that are kept for people to look at.


def model(config: Any, built: stages.Built, tensors: Mapping[str, jax.Array]) -> api.Model:
  """The runner over the tensors of a state; over the average, for a stage that keeps one.

  Raises:
    ValueError: a tensor that the model does not have, lacks, or has in another shape.
  """
  flat = state_lib.params_of(tensors, average=True)
  want = tree_lib.flatten(built.params)
  for name in sorted(flat.keys() | want.keys()):
    if name not in flat or name not in want:
      where = "model" if name in flat else "checkpoint"
      raise ValueError(f"stage {built.stage.name}: tensor {name!r} is not in the {where}")
    if flat[name].shape != want[name].shape:
      raise ValueError(
        f"stage {built.stage.name}: tensor {name!r} has shape {flat[name].shape} in the "
        f"checkpoint and {want[name].shape} in the model"
      )
  plain = config_lib.plain(config)
  resolved = {**plain, "model": built.stage.model, "processor": built.stage.processor}
  module, params = layered.plain(built.module, tree_lib.unflatten(flat))
  one = getattr(built.processor, "one", built.processor)  # Of an example, not of packs or pairs.
  return api.Model(resolved, module, params, one, built.mesh)


def run_one(
  runner: api.Model, evaluator: base.Evaluator, shown: list[dict] | None = None
) -> dict[str, float]:
  """Runs one evaluator.

  Args:
    runner: the model.
    evaluator: of `evaluators`.
    shown: its first predictions are put here.

  Returns:
    {"name/metric": value}.
  """
  name = evaluator.cfg["name"]
  found = evaluator.run(runner)
  if shown is not None:
    # As many at once as it scored at once: nothing new is to be compiled.
    size = min(int(evaluator.cfg["batch_size"]), len(evaluator))
    shown += report.collect({name: evaluator}, runner, size)[:_SHOWN]
  return {f"{name}/{metric}": float(value) for metric, value in found.items()}


def check(stage: stages.Stage, workdir: pathlib.Path) -> list[base.Evaluator]:
  """Opens the sources of a stage and makes its evaluators: their names and files are there.

  Returns:
    The evaluators, see `evaluators`.

  Raises:
    ValueError, OSError: what is wrong, with the field it stands in.
  """
  with _told(f"{stage.field}.data ({stage.name})"):
    mixture.make(stage.cfg["data"], str(workdir))
  return evaluators(stage, workdir)


def evaluators(stage: stages.Stage, workdir: pathlib.Path) -> list[base.Evaluator]:
  """The evaluators of a stage, their sources open and each with a record that can be read.

  They are kept for the run, which opens nothing twice.

  Args:
    stage: what names them. workdir: what "workdir:FILE" in their records stands for.

  Raises:
    ValueError, OSError: what is wrong, with the field it stands in.
  """
  out = []
  for n, cfg in enumerate(stage.cfg["evals"]):
    where = f"{stage.field}.evals[{n}]"
    with _told(f"{where} ({stage.name})"):
      out.append(table.make(_placed(config_lib.plain(cfg), workdir)))
    with _told(f"{where}.data ({stage.name})"):
      out[-1].check()
  return out


@contextlib.contextmanager
def _told(where: str) -> Iterator[None]:
  """Puts a field before what an error says."""
  try:
    yield
  except (ValueError, OSError) as e:
    kind = OSError if isinstance(e, OSError) else ValueError
    raise kind(f"{where}: {e}") from None


def _placed(value: Any, workdir: pathlib.Path) -> Any:
  if isinstance(value, dict):
    return {key: _placed(item, workdir) for key, item in value.items()}
  if isinstance(value, tuple):
    return tuple(_placed(item, workdir) for item in value)
  if isinstance(value, str) and value.startswith("workdir:"):
    return str(workdir / value.removeprefix("workdir:"))
  return value


def load(workdir: str | pathlib.Path, stage: str | None = None) -> api.Model:
  """The model of a run, ready to use: of its last finished stage, or of `stage`.

  What was trained on any mesh answers on one device, or on all in a run of several processes.

  Args:
    workdir: a workdir, or a checkpoint folder in it (see `saved.locate`).
    stage: name of the stage.

  Raises:
    ValueError: see `saved.locate`; no complete checkpoint; a checkpoint of another shape.
  """
  config, path, found, step = saved.locate(workdir, stage)
  return _load(config, path, found, step)


def _load(config: Any, path: pathlib.Path, found: stages.Stage, step: int | None) -> api.Model:
  devices = jax.devices() if jax.process_count() > 1 else jax.devices()[:1]
  built = stages.build(config, stages.on_any_mesh(found), path, devices)
  tensors = saved.read(path, found.name, built.mesh, ("params", "frozen", "ema"), step=step)
  return model(config, built, tensors)


def run(workdir: str | pathlib.Path, stage: str | None = None) -> dict[str, float]:
  """Runs the evaluators of a stage of a run again; `bigvlm eval`.

  Returns:
    {"name/metric": value}: what `results/<stage>.json` of the run holds, but for its loss.

  Raises:
    ValueError: see `load`.
  """
  launch.initialize()
  config, path, found, step = saved.locate(workdir, stage)
  with together.Together():
    ready = evaluators(found, path)
    runner, out = _load(config, path, found, step), {}
    for evaluator in ready:
      out.update(run_one(runner, evaluator))
  return out
