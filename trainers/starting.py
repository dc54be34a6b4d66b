"""How a stage starts: from parameters drawn anew, and from what the stage before left.

`carry` decides by name what goes over, before anything is computed; `start` makes the state.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bigvlm import build as build_lib
from bigvlm import lora
from bigvlm.layers import posemb
from bigvlm.trainers import layered, stages
from bigvlm.trainers import state as state_lib
from bigvlm.utils import tree as tree_lib

PyTree = Any


def keys(config: Mapping, stage: stages.Stage) -> tuple[jax.Array, jax.Array]:
  """(key of the fresh parameters, key of the training) of a stage."""
  return tuple(jax.random.split(jax.random.fold_in(jax.random.key(config["seed"]), stage.index)))


def carry(
  new: Mapping[str, Any], old: Mapping[str, Any], stage: stages.Stage, before: stages.Stage
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


def check_start(first: stages.Built, second: stages.Built) -> None:
  """Raises ValueError if `second` cannot start from where `first` ends; see `carry`, `take`."""
  init, field = second.stage.cfg["init"], f"{second.stage.field}.init"
  new, old = tree_lib.flatten(second.params), tree_lib.flatten(first.params)
  old = jax.eval_shape(lambda: layered.conform(_zeros(old), new))
  for n, (source, patterns) in enumerate(init["parts"]):
    if source == "previous":
      take(new, old, patterns, f"{field}.parts[{n}]={source!r}")
  if init["source"] == "previous" and not init["parts"]:
    carry(new, old, second.stage, first.stage)


def take(
  new: Mapping[str, Any], old: Mapping[str, Any], patterns: Sequence[str], what: str
) -> dict[str, Any]:
  """Those of `old` whose names match, to stand for the parameters `new`.

  Raises:
    ValueError: a pattern that matches nothing in `new`, or a parameter that `old` lacks or has in
      another shape (with both shapes). `what` names them.
  """
  names = _matched(new, patterns, what)
  for name in sorted(names):
    if name not in old:
      raise ValueError(f"{what} has no {name} {_shape(new[name])}")
    if old[name].shape != new[name].shape:
      raise ValueError(f"{what}: {name} is {_shape(old[name])} there and {_shape(new[name])} here")
  return {name: old[name] for name in names}


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
  built: stages.Built,
  before: stages.Stage | None = None,
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
    given = (cfg["train"], built.tx, rng, reported, cfg["ema"] > 0)
    return state_lib.create(params, *given, objective=built.objective)

  options = stages.compiler_options(config)
  make = jax.jit(make, out_shardings=layout, compiler_options=options)
  made = make(fresh_key, jax.random.key_data(train_key), carried)
  if old is not None and cfg["init"]["optimizer"] == "carry":
    made = made.replace(opt=_carry_optimizer(made.opt, old, stage))
  return made


def _resample(table: jax.Array, name: str, before: stages.Stage, stage: stages.Stage) -> np.ndarray:
  grids = [build_lib.patch_grid(s.model, s.processor, _encoder(name)) for s in (before, stage)]
  if not table.is_fully_addressable:
    from jax.experimental import multihost_utils

    table = multihost_utils.process_allgather(table, tiled=True)
  return posemb.resample(np.asarray(table), *grids, stage.cfg["init"]["resample"])


def _put(x: np.ndarray, layout: jax.sharding.Sharding) -> jax.Array:
  return jax.make_array_from_callback(x.shape, layout, lambda index: x[index])


def _carry_optimizer(opt: PyTree, old: Mapping[str, jax.Array], stage: stages.Stage) -> PyTree:
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
