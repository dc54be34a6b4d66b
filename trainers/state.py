"""What training carries from step to step, as one pytree that a checkpoint holds whole."""

from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct

from bigvlm import lora
from bigvlm.utils import tree as tree_lib

PyTree = Any


@struct.dataclass
class TrainState:
  """State of one stage.

  Attributes:
    step: int32 [], steps of this stage that are done (a skipped step counts).
    params: trainable parameters, nested dicts.
    frozen: the other parameters: no gradient, no optimiser state.
    opt: state of the stage's transformation, for `params` only.
    ema: float32 average of `params`, or {} when the stage has none.
    rng: uint32 [2], key data; a new key every step.
    metrics: name -> float32 [2], (sum, count) since the last log line.
    skipped: int32 [], non-finite steps of this stage.
    in_a_row: int32 [], non-finite steps since the last finite one.
    halted: bool [], set by a step that must not be passed; all later steps do nothing.
    reference: `params` at step 0, for an objective that compares with them, or {}.
    running: name -> float32 [2], (sum, count) since step 0 of the metrics that the objective reads.
  """

  step: jax.Array
  params: PyTree
  frozen: PyTree
  opt: PyTree
  ema: PyTree
  rng: jax.Array
  metrics: dict[str, jax.Array]
  skipped: jax.Array
  in_a_row: jax.Array
  halted: jax.Array
  reference: PyTree = struct.field(default_factory=dict)
  running: dict[str, jax.Array] = struct.field(default_factory=dict)


def split(params: PyTree, patterns: Iterable[str], what: str) -> tuple[PyTree, PyTree]:
  """Cuts parameters into (trainable, frozen) by regular expressions over whole names.

  Scale and dropout of low-rank adapters never train, whatever matches them.

  Raises:
    ValueError: a pattern matches no parameter, or nothing is left to train.
  """
  flat = tree_lib.flatten(params)
  hits = tree_lib.match(flat, patterns, what)
  train = {name: x for (name, x), hit in zip(flat.items(), hits, strict=True) if hit >= 0}
  train = {name: x for name, x in train.items() if not lora.is_constant(name)}
  if not train:
    raise ValueError(f"{what} is empty: no parameter would train")
  frozen = {name: x for name, x in flat.items() if name not in train}
  return tree_lib.unflatten(train), tree_lib.unflatten(frozen)


def merge(train: PyTree, frozen: PyTree) -> PyTree:
  """The inverse of `split`."""
  return tree_lib.unflatten({**tree_lib.flatten(train), **tree_lib.flatten(frozen)})


def create(
  params: PyTree,
  patterns: Iterable[str],
  tx: optax.GradientTransformation,
  rng: jax.Array,
  metric_names: Iterable[str],
  ema: bool,
  what: str = "train",
  objective: Any = None,
) -> TrainState:
  """A state at step 0. Traceable: under `jax.eval_shape` it gives the abstract state.

  Args:
    params: all parameters.
    patterns: what trains.
    tx: the stage's transformation.
    rng: uint32 [2].
    metric_names: what the step reports.
    ema: whether an average is kept.
    what: where `patterns` stand in the config, for errors.
    objective: the stage's, which may want a reference and sums over the stage (`objectives.dpo`).
  """
  train, frozen = split(params, patterns, what)
  running = getattr(objective, "running", ())

  def zero():
    return jnp.zeros([], jnp.int32)

  return TrainState(
    step=zero(),
    params=train,
    frozen=frozen,
    opt=tx.init(train),
    ema=jax.tree.map(lambda p: p.astype(jnp.float32), train) if ema else {},
    rng=rng,
    metrics={name: jnp.zeros([2], jnp.float32) for name in metric_names},
    skipped=zero(),
    in_a_row=zero(),
    halted=jnp.zeros([], jnp.bool_),
    reference=jax.tree.map(jnp.copy, train) if getattr(objective, "pairs", False) else {},
    running={name: jnp.zeros([2], jnp.float32) for name in running},
  )


def params_of(tensors: Mapping[str, Any], average: bool = False) -> dict[str, Any]:
  """Parameters by name, out of the tensors of a state by name (`params/...`, `frozen/...`).

  Args:
    tensors: `tree.flatten(state)`, or what a checkpoint holds.
    average: take the average (`ema/...`, in the parameter's dtype) where there is one.
  """
  out = {}
  for name, x in tensors.items():
    group, _, rest = name.partition("/")
    if group in ("params", "frozen"):
      mean = tensors.get(f"ema/{rest}") if average else None
      out[rest] = x if mean is None else mean.astype(x.dtype)
  return out
