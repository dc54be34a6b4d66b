"""What runs left on disk: which stage of which workdir, and its tensors."""

import dataclasses
import json
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any

import jax

from bigvlm import config as config_lib
from bigvlm.ckpt import native
from bigvlm.hub import load
from bigvlm.parallel import sharding
from bigvlm.trainers import layered, stages, starting
from bigvlm.trainers import state as state_lib
from bigvlm.utils import names
from bigvlm.utils import tree as tree_lib


def locate(
  source: str | pathlib.Path, stage: str | None = None
) -> tuple[Any, pathlib.Path, stages.Stage, int | None]:
  """(config, workdir, stage, step or None) of a workdir or one of its checkpoint folders.

  Args:
    source: WORKDIR, WORKDIR/checkpoints/STAGE or WORKDIR/checkpoints/STAGE/STEP.
    stage: name of the stage; by default the last one that is finished.

  Raises:
    ValueError: the path is no workdir, or has no such (or no finished) stage.
  """
  path, step = pathlib.Path(source), None
  if "checkpoints" in path.parts and not (path / "config.json").is_file():
    at = len(path.parts) - 1 - path.parts[::-1].index("checkpoints")
    inside, path = path.parts[at + 1 :], pathlib.Path(*path.parts[:at])
    stage = inside[0] if inside else stage
    step = int(inside[1]) if len(inside) > 1 and inside[1].isdigit() else None
  if not (path / "config.json").is_file():
    raise ValueError(f"{path} is no workdir of a run: it has no config.json")
  written = config_lib.from_json((path / "config.json").read_text("utf-8"))
  config = config_lib.check(config_lib.complete(written))
  plan = {s.name: s for s in stages.resolve(config, path)}
  if stage is None:
    done = [name for name in plan if (path / "results" / f"{name}.json").is_file()]
    if not done:
      raise ValueError(f"no stage of {path} is finished; name one of {', '.join(plan)}")
    stage = done[-1]
  return config, path, names.lookup("stage", stage, plan), step


def read(
  workdir: pathlib.Path,
  stage: str,
  mesh: jax.sharding.Mesh,
  groups: Iterable[str],
  *,
  step: int | None = None,
  verify: str = "sample",
) -> dict[str, jax.Array]:
  """Tensors of a checkpoint by name, cut over `mesh` by the fsdp fallback.

  Args:
    workdir, stage, step: which checkpoint; the newest by default.
    mesh: any mesh.
    groups: which parts of the state: "params", "frozen", "ema", "opt".
    verify: see `Checkpointer`.

  Raises:
    ValueError: the stage has no complete checkpoint.
    native.CheckpointError: see `Checkpointer.restore`.
  """
  folder = pathlib.Path(workdir) / "checkpoints" / stage
  saver = native.Checkpointer(folder, verify=verify)
  try:
    step = saver.latest() if step is None else step
    if step is None:
      raise ValueError(f"stage {stage!r} has no complete checkpoint in {folder}")
    specs, _ = saver.describe(step)
    out = {}
    for group in groups:
      part = {name: spec for name, spec in specs.items() if name.split("/")[0] == group}
      if part:
        out.update(_read_group(saver, step, group, part, mesh))
    return out
  finally:
    saver.close()


def _read_group(saver: Any, step: int, group: str, part: Mapping, mesh: Any) -> dict:
  tree = tree_lib.unflatten(part)
  layout = sharding.shardings(tree, mesh)
  like = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), tree, layout)
  return tree_lib.flatten(saver.restore(like, step, only=group)[0])


def before(
  plan: list[stages.Stage], built: stages.Built, workdir: pathlib.Path
) -> tuple[stages.Stage, dict[str, jax.Array]] | None:
  """What `init.source` of a stage names, from disk: (the stage that wrote it, its tensors).

  `previous` is the stage before in this workdir (None for the first stage), `fresh` is None; a
  hub id or a directory with a checkpoint of others is read as `bigvlm.load` does, in the dtype of
  this stage's parameters; anything else is a path that `locate` takes. Parameters that match
  `init.parts` come from the sources that it names, which are read likewise.

  Raises:
    ValueError: there is no such checkpoint, or it lacks a parameter that it is named for; names
      the field.
  """
  init, field = built.stage.cfg["init"], f"{built.stage.field}.init"
  found = _source(init["source"], plan, built, workdir, f"{field}.source", "")
  for n, (source, patterns) in enumerate(init["parts"]):
    where = f"{field}.parts[{n}]"
    part = _source(source, plan, built, workdir, where, f".parts[{n}]")
    if found is None or part is None:
      raise ValueError(f"{where}={source!r}: parts of a checkpoint go over those of another")
    new = tree_lib.flatten(built.params)
    base, other = (layered.conform(state_lib.params_of(x), new) for _, x in (found, part))
    taken = starting.take(new, other, patterns, f"{where}={source!r}")
    rest = {name: x for name, x in found[1].items() if name.startswith("opt/")}
    found = found[0], rest | {f"params/{name}": x for name, x in {**base, **taken}.items()}
  return found


def _source(
  source: str,
  plan: list[stages.Stage],
  built: stages.Built,
  workdir: pathlib.Path,
  field: str,
  part: str,
) -> tuple[stages.Stage, dict[str, jax.Array]] | None:
  """One source of `before`; `part` is put behind the stage's name in `sources.json`."""
  stage, init, field = built.stage, built.stage.cfg["init"], f"{field}={source!r}"
  if source == "fresh" or (source == "previous" and stage.index == 0):
    return None
  try:
    step = None
    if load.is_checkpoint(source):
      return _foreign(source, built, workdir, stage.name + part)
    if source == "previous":
      first = plan[stage.index - 1]
      if not (workdir / "results" / f"{first.name}.json").exists():
        raise ValueError(f"stage {first.name!r} is not finished in {workdir}")
    else:
      _, workdir, first, step = locate(source)
    groups = ["params", "frozen"] + ["opt"] * (init["optimizer"] == "carry")
    return first, read(workdir, first.name, built.mesh, groups, step=step)
  except (ValueError, FileNotFoundError) as e:
    raise ValueError(f"{field}: {e}") from None


def _foreign(
  source: str, built: stages.Built, workdir: pathlib.Path, key: str
) -> tuple[stages.Stage, dict[str, jax.Array]]:
  """A checkpoint of others as if a stage had written it; `sources.json` says which it was."""
  dtype = str(jax.tree.leaves(built.params)[0].dtype)
  model = load.load(source, dtype=dtype, mesh=built.mesh)
  if jax.process_index() == 0:
    # A folder of the hub's cache is named after the commit: what `main` was when this began.
    folder = model.directory.resolve()
    revision = folder.name if folder.parent.name == "snapshots" else None
    path = workdir / "sources.json"
    known = json.loads(path.read_text("utf-8")) if path.is_file() else {}
    known[key] = dict(source=source, revision=revision)
    path.write_text(json.dumps(known, indent=2) + "\n", "utf-8")
  stage = dataclasses.replace(
    built.stage, name=source, model=model.config["model"], processor=model.config["processor"]
  )
  return stage, {f"params/{name}": x for name, x in tree_lib.flatten(model.params).items()}
