"""Stages: what each one is, and everything it is built of.

`resolve` turns the records of a config into `Stage`s, `build` makes module, processor,
objective, mesh and step of one (nothing is computed or compiled yet, so that a wrong
name or shape in the last stage is told before the first one starts). How one starts from
another is in `trainers.starting`.
"""

import dataclasses
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from bigvlm import build as build_lib
from bigvlm import config as config_lib
from bigvlm import lora
from bigvlm.parallel import mesh as mesh_lib
from bigvlm.parallel import sharding
from bigvlm.processing import pairs
from bigvlm.trainers import layered, optim, packed, schedule
from bigvlm.trainers import state as state_lib
from bigvlm.trainers import step as step_lib
from bigvlm.utils import tree as tree_lib

PyTree = Any


@dataclasses.dataclass(frozen=True)
class Stage:
  """One stage, with what it merges over the config. Plain data.

  Attributes:
    index: place in the config. name: its name. field: `stages[index]`, for errors.
    cfg: the record. model, processor, mesh: merged over the config's. steps: its length.
  """

  index: int
  name: str
  field: str
  cfg: dict
  model: dict
  processor: dict
  mesh: dict
  steps: int


@dataclasses.dataclass(frozen=True)
class Built:
  """What a stage runs with.

  Attributes:
    stage: what it is. module, processor, objective, mesh: made from it.
    tx: its optax transformation.
    init: `key -> params`, traceable.
    params: abstract parameters.
    state: abstract `TrainState` with shardings: what a checkpoint is restored into.
    step: the jitted train step; `state` is donated.
  """

  stage: Stage
  module: Any
  processor: Any
  objective: Any
  mesh: jax.sharding.Mesh
  tx: Any
  init: Callable
  params: PyTree
  state: state_lib.TrainState
  step: Callable


def resolve(config: Mapping, workdir: pathlib.Path) -> list[Stage]:
  """All stages of a config, in order; sources of a stage that counts epochs may lie in `workdir`.

  Raises:
    ValueError: no stage; a length that is not said exactly once; a picture size that is
      no multiple of the patch; unequal cuts by `accumulate`.
  """
  if not config["stages"]:
    raise ValueError("config.stages is empty: there is nothing to train")
  out = []
  for index, record in enumerate(config["stages"]):
    field, cfg = f"stages[{index}]", config_lib.plain(record)
    merged = {
      key: config_lib.plain(config_lib.merge(config[key], record[key]))
      for key in ("model", "processor", "mesh")
    }
    for part in (merged["model"], merged["processor"], cfg["init"]):
      if str(part.get("source", "")).startswith("workdir:"):
        part["source"] = str(pathlib.Path(workdir) / part["source"].removeprefix("workdir:"))
    if merged["model"].get("kind") == "checkpoint":
      own = {k: v for k, v in merged["model"].items() if k not in ("kind", "source")}
      found = _checkpoints().system(merged["model"].get("source", "")).model
      merged["model"] = config_lib.plain(config_lib.merge(found, own))
    _check_patches(merged["model"], merged["processor"], f"{field} ({cfg['name']})")
    if cfg["accumulate"] < 1 or cfg["batch_size"] % cfg["accumulate"]:
      raise ValueError(
        f"{field}.accumulate={cfg['accumulate']} does not divide {field}.batch_size="
        f"{cfg['batch_size']}"
      )
    if cfg["lora"]["rank"] and tuple(cfg["train"]) == (".*",):
      cfg["train"] = lora.TRAINED
    out.append(Stage(index, cfg["name"], field, cfg, steps=_steps(cfg, field, workdir), **merged))
  return out


def _checkpoints() -> Any:
  """What reads checkpoints of others; imported for those runs only, which start with one."""
  from bigvlm.hub import training

  return training


def _steps(cfg: dict, field: str, workdir: pathlib.Path) -> int:
  said = {key: cfg[key] for key in ("steps", "examples", "epochs") if cfg[key] > 0}
  if len(said) != 1:
    raise ValueError(
      f"{field} ({cfg['name']}): exactly one of steps, examples and epochs must be above 0, "
      f"not {', '.join(f'{k}={v}' for k, v in said.items()) or 'none'}"
    )
  if "steps" in said:
    return cfg["steps"]
  examples = cfg["examples"]
  if "epochs" in said:
    # An epoch of a mixture is as many examples as all its sources hold together.
    from bigvlm.data import mixture

    examples = cfg["epochs"] * len(mixture.make(cfg["data"], str(workdir)))
  return max(1, round(examples / cfg["batch_size"]))


def _check_patches(model: dict, processor: dict, where: str) -> None:
  if "size" not in processor.get("image", {}):
    return
  size = build_lib.image_size(processor)
  for name, cfg in model.get("encoders", {}).items():
    patch = getattr(build_lib.encoder(cfg, f"model.encoders.{name}"), "patch", None)
    if patch and (size[0] % patch or size[1] % patch):
      raise ValueError(
        f"{where}: processor.image.size={size[0]}x{size[1]} is not a multiple of the patch "
        f"{patch} of model.encoders.{name}"
      )


def build(config: Mapping, stage: Stage, workdir: pathlib.Path, devices=None) -> Built:
  """Makes all that `stage` runs with; traces shapes, compiles nothing.

  Raises:
    ValueError: any wrong name, pattern, size or mesh, with the field it stands in.
  """
  cfg, field = stage.cfg, stage.field
  mesh = mesh_lib.make(stage.mesh, devices)
  rows = f"{field}.batch_size"
  mesh_lib.check_batch(mesh, cfg["batch_size"] // cfg["accumulate"], rows + " / accumulate")
  module = build_lib.model(
    stage.model,
    dtype=config["dtype"],
    layers=config["layers"],
    remat=config["remat"],
  )
  if stage.processor.get("kind") == "checkpoint":
    processor = _checkpoints().make(stage.processor)
  else:
    processor = build_lib.processor(stage.model, stage.processor, workdir)
  _check_vocabulary(stage, processor)
  objective = build_lib.objective(cfg["objective"], mesh)
  if getattr(objective, "pairs", False):
    processor = pairs.Pairs(processor)
  if cfg["pack"]["count"] > 1:
    processor = packed.make(module, processor, cfg, field)
  drawn = _init(module, processor, objective, mesh, stage)
  key = jax.eval_shape(lambda: jax.random.key(0))
  params, metrics = jax.eval_shape(drawn, key)

  def init(key):
    return drawn(key)[0]

  wrapped = layered.wrap(module, params, _patterns(cfg), config["layers"], field)
  if wrapped is not module:
    module, init = wrapped, _apart(init)
    params = jax.eval_shape(init, key)

  trainable, _ = state_lib.split(params, cfg["train"], f"{field}.train")
  tx = optim.make(cfg, trainable, stage.steps, field)
  reported = step_lib.reported(metrics)
  abstract = jax.eval_shape(
    lambda p, rng: state_lib.create(
      p, cfg["train"], tx, rng, reported, cfg["ema"] > 0, objective=objective
    ),
    params,
    jax.ShapeDtypeStruct((2,), jnp.uint32),
  )
  rules = [rule for rule in config["rules"] if _matches(rule[0], params)]
  layout = sharding.shardings(abstract, mesh, rules, params=params)
  abstract = jax.tree.map(
    lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), abstract, layout
  )
  factor = schedule.make({**cfg["schedule"], "groups": ()}, stage.steps)
  step = step_lib.make_train_step(
    module,
    objective,
    tx,
    lr=lambda t: cfg["lr"] * factor(t),
    accumulate=cfg["accumulate"],
    ema=cfg["ema"],
    policy=config["nonfinite"]["policy"],
    max_in_a_row=config["nonfinite"]["max_in_a_row"],
    log_every=config["log"]["every"],
  )
  step = jax.jit(
    step,
    donate_argnums=0,
    in_shardings=(layout, mesh_lib.batch_sharding(mesh)),
    out_shardings=(layout, mesh_lib.replicated(mesh)),
    compiler_options=compiler_options(config),
  )
  return Built(stage, module, processor, objective, mesh, tx, init, params, abstract, step)


def compiler_options(config: Mapping) -> dict[str, Any] | None:
  """Those of `jax.jit`, None where the config gives none."""
  return dict(config["compiler_options"]) or None


def _patterns(cfg: Mapping) -> list[str]:
  """The patterns of a stage over its own parameters."""
  pairs = (*cfg["lr_mults"], *cfg["weight_decay"], *cfg["schedule"]["groups"])
  return [*cfg["train"], *cfg["init"]["fresh"], *(pattern for pattern, _ in pairs)]


def _check_vocabulary(stage: Stage, processor: Any) -> None:
  """An id beyond the embedding table would be NaN, far from where it came from."""
  pieces = getattr(getattr(processor, "tokenizer", None), "vocab_size", 0)
  slot = {"two_tower": "text", "vlm": "decoder"}.get(stage.model["kind"])
  size = stage.model.get(slot, {}).get("vocab", pieces)
  if pieces > size:
    raise ValueError(
      f"{stage.field} ({stage.name}): model.{slot}.vocab={size}, but the tokenizer has {pieces} ids"
    )


def on_any_mesh(stage: Stage) -> Stage:
  """The same stage for whatever devices there are: parameters whole, batches of any size."""
  cfg = {**stage.cfg, "batch_size": jax.device_count(), "accumulate": 1}
  return dataclasses.replace(stage, mesh=dict(data=-1, fsdp=1, tensor=1), cfg=cfg)


def _matches(pattern: str, params: PyTree) -> bool:
  try:
    tree_lib.match(tree_lib.names(params), [pattern], "rules")
  except ValueError:
    return False
  return True


def check_rules(config: Mapping, built: list[Built]) -> None:
  """Raises ValueError for a sharding rule that matches a parameter of no stage.

  (A rule for the decoder says nothing about a contrastive stage, and that is fine.)
  """
  known = {name for b in built for name in tree_lib.names(b.params)}
  for pattern, _ in config["rules"]:
    tree_lib.match(sorted(known), [pattern], "config.rules")


def _rows(processor: Any, mesh: jax.sharding.Mesh) -> dict[str, tuple[tuple[int, ...], Any]]:
  rows = mesh_lib.batch_size(mesh)
  spec = processor.spec()
  return {name: ((rows, *shape), dtype) for name, (shape, dtype) in spec.items() if name != "ids"}


def _apart(init: Callable) -> Callable:
  """`init` with the layers apart, adapters included."""
  return lambda key: tree_lib.unflatten(layered.cut(tree_lib.flatten(init(key))))


def _init(module: Any, processor: Any, objective: Any, mesh: Any, stage: Stage) -> Callable:
  """`key -> (parameters, metrics of the objective)`.

  Drawing parameters runs the model once, so the metrics' names come with it; and jitted, because
  a model is slow to trace and this is called for its shapes and again for its values.
  """
  adapter, what = stage.cfg["lora"], f"{stage.field}.lora"

  @jax.jit
  def init(key):
    rows = _rows(processor, mesh)
    arrays = {name: jnp.zeros(shape, dtype) for name, (shape, dtype) in rows.items()}
    batch = step_lib.as_batch(objective, arrays)
    out, variables = module.init_with_output({"params": key}, batch)
    if getattr(objective, "pairs", False):
      batch = objective.refer(out, batch)
    metrics = objective(out, batch)[1]
    params = variables["params"]
    if not adapter["rank"]:
      return params, metrics
    try:
      given = {**adapter, "rng": jax.random.fold_in(key, 1), "what": f"{what}.targets"}
      return lora.add(params, **given), metrics
    except ValueError as e:
      said = str(e)
      raise ValueError(said if said.startswith(what) else f"{what}: {said}") from None

  return init
