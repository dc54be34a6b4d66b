"""Stages: what each one is, everything it is built of, and how one starts from another.

`resolve` turns the records of a config into `Stage`s, `build` makes module, processor,
objective, mesh and step of one (nothing is computed or compiled yet, so that a wrong
name or shape in the last stage is told before the first one starts), and `carry`
decides which parameters go over.
"""

import dataclasses
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bigvlm import build as build_lib
from bigvlm import config as config_lib
from bigvlm import lora, types
from bigvlm.layers import posemb
from bigvlm.parallel import mesh as mesh_lib
from bigvlm.parallel import sharding
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
      merged["model"] = _checkpoints().system(merged["model"].get("source", "")).model
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
  if cfg["pack"]["count"] > 1:
    processor = packed.make(module, processor, cfg, field)
  objective = build_lib.objective(cfg["objective"], mesh)
  init, batch = _init(module, processor, mesh, stage), _abstract_batch(processor, mesh)
  key = jax.eval_shape(lambda: jax.random.key(0))
  params = jax.eval_shape(init, key)
  wrapped = layered.wrap(module, params, _patterns(cfg), config["layers"], field)
  if wrapped is not module:
    module, init = wrapped, _apart(init)
    params = jax.eval_shape(init, key)

  trainable, _ = state_lib.split(params, cfg["train"], f"{field}.train")
  tx = optim.make(cfg, trainable, stage.steps, field)
  reported = step_lib.metric_names(module, objective, params, batch)
  abstract = jax.eval_shape(
    lambda p, rng: state_lib.create(p, cfg["train"], tx, rng, reported, cfg["ema"] > 0),
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
    compiler_options=_compiler_options(config),
  )
  return Built(stage, module, processor, objective, mesh, tx, init, params, abstract, step)


def _compiler_options(config: Mapping) -> dict[str, Any] | None:
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


def _abstract_batch(processor: Any, mesh: jax.sharding.Mesh) -> PyTree:
  rows = _rows(processor, mesh)
  return {name: jax.ShapeDtypeStruct(shape, dtype) for name, (shape, dtype) in rows.items()}


def _apart(init: Callable) -> Callable:
  """`init` with the layers apart, adapters included."""
  return lambda key: tree_lib.unflatten(layered.cut(tree_lib.flatten(init(key))))


def _init(module: Any, processor: Any, mesh: jax.sharding.Mesh, stage: Stage) -> Callable:
  adapter, what = stage.cfg["lora"], f"{stage.field}.lora"

  def init(key):
    rows = _rows(processor, mesh)
    arrays = {name: jnp.zeros(shape, dtype) for name, (shape, dtype) in rows.items()}
    params = module.init({"params": key}, types.to_batch(arrays))["params"]
    if not adapter["rank"]:
      return params
    try:
      given = {**adapter, "rng": jax.random.fold_in(key, 1), "what": f"{what}.targets"}
      return lora.add(params, **given)
    except ValueError as e:
      said = str(e)
      raise ValueError(said if said.startswith(what) else f"{what}: {said}") from None

  return init


def keys(config: Mapping, stage: Stage) -> tuple[jax.Array, jax.Array]:
  """(key of the fresh parameters, key of the training) of a stage."""
  return tuple(jax.random.split(jax.random.fold_in(jax.random.key(config["seed"]), stage.index)))


def carry(
  new: Mapping[str, Any], old: Mapping[str, Any], stage: Stage, before: Stage
) -> tuple[list[str], list[str]]:
  """Decides by name what goes over from `before` to `stage`.

  Adapters that only `stage` has are initialised; their scale and dropout are always its own.

  Args:
    new: parameters of `stage`, anything with a shape.
    old: those of `before`.

  Returns:
    (names that go over as they are, names of position tables that are resampled).
    What is left of `new` matches `init.fresh`, what is left of `old` matches `init.drop`.

  Raises:
    ValueError: one message that lists all parameters that are neither carried nor fresh,
      neither carried nor dropped, or of another shape (with both shapes).
  """
  init, field = stage.cfg["init"], stage.field
  new, old = ({n: x for n, x in t.items() if not lora.is_constant(n)} for t in (new, old))
  fresh = _matched(new, init["fresh"], f"{field}.init.fresh")
  drop = _matched(old, init["drop"], f"{field}.init.drop")
  same, resampled, wrong = [], [], []
  for name, leaf in new.items():
    if name in fresh:
      continue
    if name not in old and lora.is_leaf(name):
      continue
    if name not in old or name in drop:
      wrong.append(f"{name} {_shape(leaf)} is not in stage {before.name!r}: carry or init.fresh it")
    elif tuple(leaf.shape) == tuple(old[name].shape):
      same.append(name)
    elif _encoder(name) and leaf.ndim == 3 and leaf.shape[2] == old[name].shape[2]:
      resampled.append(name)
    else:
      wrong.append(f"{name} is {_shape(old[name])} in {before.name!r} and {_shape(leaf)} here")
  for name, leaf in old.items():
    if name not in drop and (name not in new or name in fresh):
      wrong.append(f"{name} {_shape(leaf)} of {before.name!r} has no place here: init.drop it")
  if wrong:
    shown = "; ".join(wrong[:6]) + (f"; and {len(wrong) - 6} more" if len(wrong) > 6 else "")
    raise ValueError(f"{field} ({stage.name}) cannot start from {before.name!r}: {shown}")
  return same, resampled


def tensors(state: state_lib.TrainState) -> dict[str, jax.Array]:
  """The tensors of a state by the names they have in a checkpoint, as `start` takes them."""
  return tree_lib.flatten(state)


def check_start(first: Built, second: Built) -> None:
  """Raises ValueError if `second` cannot start from where `first` ends; see `carry`."""
  new, old = tree_lib.flatten(second.params), tree_lib.flatten(first.params)
  old = jax.eval_shape(lambda: layered.conform(_zeros(old), new))
  carry(new, old, second.stage, first.stage)


def _zeros(tree: PyTree) -> PyTree:
  return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), tree)


def _matched(tree: Mapping[str, Any], patterns: tuple[str, ...], what: str) -> set[str]:
  hits = tree_lib.match(tree, patterns, what)
  return {name for name, hit in zip(tree, hits, strict=True) if hit >= 0}


def _shape(leaf: Any) -> str:
  return str(tuple(leaf.shape))


def _encoder(name: str) -> str | None:
  """The encoder whose position table `name` is, or None."""
  parts = name.split("/")
  return parts[1] if len(parts) == 3 and parts[0] == "encoders" and parts[2] == "posemb" else None


def start(
  config: Mapping,
  built: Built,
  before: Stage | None = None,
  old: Mapping[str, jax.Array] | None = None,
) -> state_lib.TrainState:
  """The state at step 0: parameters of `old` as `carry` says, the rest initialised.

  Args:
    config: the config.
    built: the stage that starts.
    before, old: the stage to start from and the tensors of its last state by name
      (`params/...`, `frozen/...`, and `opt/...` to carry them); None = all fresh.

  Raises:
    ValueError: see `carry`; `init.optimizer="carry"` with a state of another optimiser.
  """
  stage, carried = built.stage, {}
  layout = jax.tree.map(lambda x: x.sharding, built.state)
  if old is not None:
    where = {**tree_lib.flatten(layout.params), **tree_lib.flatten(layout.frozen)}
    have = layered.conform(state_lib.params_of(old), tree_lib.flatten(built.params))
    same, resampled = carry(tree_lib.flatten(built.params), have, stage, before)
    carried = {name: jax.device_put(have[name], where[name]) for name in same}
    for name in resampled:
      carried[name] = _put(_resample(have[name], name, before, stage), where[name])
  fresh_key, train_key = keys(config, stage)
  cfg, reported = stage.cfg, list(built.state.metrics)

  def make(key, rng, carried):
    params = tree_lib.unflatten({**tree_lib.flatten(built.init(key)), **carried})
    return state_lib.create(params, cfg["train"], built.tx, rng, reported, cfg["ema"] > 0)

  options = _compiler_options(config)
  make = jax.jit(make, out_shardings=layout, compiler_options=options)
  made = make(fresh_key, jax.random.key_data(train_key), carried)
  if old is not None and cfg["init"]["optimizer"] == "carry":
    made = made.replace(opt=_carry_optimizer(made.opt, old, stage))
  return made


def _resample(table: jax.Array, name: str, before: Stage, stage: Stage) -> np.ndarray:
  grids = [build_lib.patch_grid(s.model, s.processor, _encoder(name)) for s in (before, stage)]
  if not table.is_fully_addressable:
    from jax.experimental import multihost_utils

    table = multihost_utils.process_allgather(table, tiled=True)
  return posemb.resample(np.asarray(table), *grids, stage.cfg["init"]["resample"])


def _put(x: np.ndarray, layout: jax.sharding.Sharding) -> jax.Array:
  return jax.make_array_from_callback(x.shape, layout, lambda index: x[index])


def _carry_optimizer(opt: PyTree, old: Mapping[str, jax.Array], stage: Stage) -> PyTree:
  """`opt` with every tensor of `old` that has its name, shape and dtype; the rest stays zero."""
  taken = []

  def leaf(name, x):
    have = old.get(f"opt/{name}")
    if have is None or (have.shape, have.dtype) != (x.shape, x.dtype):
      return x
    taken.append(name)
    # A copy: this state is donated to its first step, and the old one must outlive that.
    return jax.device_put(jnp.copy(have), x.sharding)

  out = tree_lib.map_named(leaf, opt)
  if not taken:
    raise ValueError(
      f"{stage.field}.init.optimizer='carry': the stage before has no state that fits "
      f"optimizer.kind={stage.cfg['optimizer']['kind']!r}"
    )
  return out
