"""One optax transformation per stage: clip, optimiser, learning rates, decay, schedule.

    update = -schedule(step) * (lr * mult * direction + weight_decay * parameter)

Decay is decoupled and multiplied by the schedule but not by the learning rate,
the semantics of big_vision's PaliGemma configs. Only trainable parameters come
here (see `trainers.state.split`), so a frozen one has neither gradient nor
optimiser state nor decay, and the clip sees trainable leaves only.

All of it is written leaf by leaf in one traversal: XLA then fuses clip, moments,
decay and the skip of a bad step into one pass over a leaf.
"""

from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from bigvlm.trainers import adam8 as adam8_lib
from bigvlm.trainers import schedule as schedule_lib
from bigvlm.utils import names as names_lib
from bigvlm.utils import tree as tree_lib

PyTree = Any


def adam(b1=0.9, b2=0.999, eps=1e-8, mu_dtype="float32") -> optax.GradientTransformation:
  """Adam's direction (arXiv 1412.6980), bias-corrected; the second moment is always float32.

  State: `count` int32 [], `mu` in `mu_dtype`, `nu` float32, both shaped like the parameters.
  """
  mu_dtype = jnp.dtype(mu_dtype)

  def init(params):
    def zeros(dtype):
      return jax.tree.map(lambda p: jnp.zeros_like(p, dtype), params)

    return dict(count=jnp.zeros([], jnp.int32), mu=zeros(mu_dtype), nu=zeros(jnp.float32))

  def update(grads, state, params=None):
    del params
    count = state["count"] + 1
    scale1 = 1.0 / (1.0 - b1 ** count.astype(jnp.float32))
    scale2 = 1.0 / (1.0 - b2 ** count.astype(jnp.float32))

    def leaf(g, mu, nu):
      g = g.astype(jnp.float32)
      mu = b1 * mu.astype(jnp.float32) + (1.0 - b1) * g
      nu = b2 * nu + (1.0 - b2) * jnp.square(g)
      return mu * scale1 / (jnp.sqrt(nu * scale2) + eps), mu.astype(mu_dtype), nu

    out, mu, nu = _unzip(jax.tree.map(leaf, grads, state["mu"], state["nu"]), grads, 3)
    return out, dict(count=count, mu=mu, nu=nu)

  return optax.GradientTransformation(init, update)


def adafactor(
  min_dim_size_to_factor=32,
  decay_rate=0.8,
  beta2_cap=0.999,
  clipping_threshold=0.0,
  momentum=0.9,
  dtype_momentum="bfloat16",
  epsilon=1e-30,
) -> optax.GradientTransformation:
  """Adafactor as big_vision uses it (arXiv 1804.04235, 2106.04560 section 3.4), in its names.

  The second moment is factored over the two largest dimensions when both have at
  least `min_dim_size_to_factor`; its decay is min(beta2_cap, 1 - (t + 1)^-decay_rate).
  No relative step size and no parameter scale. `clipping_threshold` > 0 caps the RMS
  of a leaf's update. `momentum` > 0 keeps a first moment, not bias-corrected.
  """

  def second_decay(i, exponent):
    return jnp.minimum(beta2_cap, 1.0 - (jnp.asarray(i, jnp.float32) + 1.0) ** -exponent)

  parts = [
    optax.scale_by_factored_rms(
      decay_rate=decay_rate,
      min_dim_size_to_factor=min_dim_size_to_factor,
      epsilon=epsilon,
      decay_rate_fn=second_decay,
    )
  ]
  if clipping_threshold:
    parts.append(optax.clip_by_block_rms(clipping_threshold))
  if momentum:
    dtype = jnp.dtype(dtype_momentum)
    parts.append(optax.ema(momentum, debias=False, accumulator_dtype=dtype))
  return optax.chain(*parts)


def muon(b1=0.95, b2=0.999, eps=1e-8, rms=0.2) -> optax.GradientTransformation:
  """Muon: momentum made orthogonal, for the matrices of layers; Adam for all other parameters.

  The matrices are the kernels below `blocks`, one by one where layers are stacked, with their
  inputs and outputs flattened. Each update has orthogonal columns or rows and the root mean square
  `rms` (as Adam's is about, so learning rates carry over). `b1` is the momentum of the matrices;
  Adam's is at most 0.9. Jordan et al., 2024
  (kellerjordan.github.io/posts/muon); the scale is that of arXiv 2502.16982, section 2.2.
  """
  rest = adam(b1=min(b1, 0.9), b2=b2, eps=eps)

  def flat(name, x):
    """A stacked kernel as [layers, in, out], None for what is not one."""
    if "/blocks/" not in f"/{name}" or not name.endswith("/kernel") or x.ndim < 3:
      return None
    ins = -1 if name.endswith("/o/kernel") else x.shape[1]
    return x.reshape(x.shape[0], ins, x.shape[-1] if ins < 0 else -1)

  def split(tree):
    leaves = tree_lib.flatten(tree)
    matrices = {n: x for n, x in leaves.items() if flat(n, x) is not None}
    return matrices, {n: x for n, x in leaves.items() if n not in matrices}

  def init(params):
    matrices, others = split(params)
    mu = {n: jnp.zeros_like(x, jnp.float32) for n, x in matrices.items()}
    return dict(mu=tree_lib.unflatten(mu), rest=rest.init(tree_lib.unflatten(others)))

  def update(grads, state, params=None):
    matrices, others = split(grads)
    out, second = rest.update(tree_lib.unflatten(others), state["rest"], params)
    out, mu = tree_lib.flatten(out), tree_lib.flatten(state["mu"])
    for name, g in matrices.items():
      g = g.astype(jnp.float32)
      mu[name] = b1 * mu[name] + g
      x = flat(name, g + b1 * mu[name])
      out[name] = (rms * max(x.shape[1:]) ** 0.5 * orthogonal(x)).reshape(g.shape)
    return tree_lib.unflatten(out), dict(mu=tree_lib.unflatten(mu), rest=second)

  return optax.GradientTransformation(init, update)


def orthogonal(x: jax.Array, steps: int = 5) -> jax.Array:
  """The matrix near x with singular values of about 1, f32 [..., m, n] (Newton-Schulz)."""
  turned = x.shape[-2] > x.shape[-1]
  x = jnp.swapaxes(x, -1, -2) if turned else x
  x = x / (jnp.linalg.norm(x, axis=(-2, -1), keepdims=True) + 1e-7)
  for _ in range(steps):
    a = x @ jnp.swapaxes(x, -1, -2)
    x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
  return jnp.swapaxes(x, -1, -2) if turned else x


def momentum(b1=0.9, nesterov=False, mu_dtype="float32") -> optax.GradientTransformation:
  """Heavy-ball (or Nesterov) momentum: mu = b1 * mu + g."""
  return optax.trace(b1, nesterov=nesterov, accumulator_dtype=jnp.dtype(mu_dtype))


def sgd() -> optax.GradientTransformation:
  """Plain gradient descent; no state."""
  return optax.identity()


KINDS = {
  "adam": adam,
  "adam8": adam8_lib.adam8,
  "adafactor": adafactor,
  "muon": muon,
  "momentum": momentum,
  "sgd": sgd,
}
# Every stage record has these as defaults; a kind that lacks them passes over them.
_ADAM_ONLY = ("b1", "b2", "eps", "mu_dtype")


def direction(cfg: dict, field: str = "optimizer") -> optax.GradientTransformation:
  """The optimiser named by `cfg.kind`, without learning rate or decay.

  Raises:
    ValueError: unknown kind, or a field that the kind does not have.
  """
  cfg = dict(cfg)
  try:
    make_kind = names_lib.lookup("optimizer", cfg.pop("kind"), KINDS)
  except ValueError as e:
    raise ValueError(f"{field}.kind: {e}") from None
  known = make_kind.__code__.co_varnames[: make_kind.__code__.co_argcount]
  for key in list(cfg):
    if key in known:
      continue
    if key not in _ADAM_ONLY:
      raise ValueError(f"{field}: " + names_lib.unknown(f"{make_kind.__name__} field", key, known))
    del cfg[key]
  return make_kind(**cfg)


def per_name(
  all_names: Iterable[str], rules: Iterable[tuple[str, Any]], default: Any, field: str
) -> dict[str, Any]:
  """Value of the first rule whose regex matches each whole name, else `default`.

  Raises:
    ValueError: a regex that matches no parameter (with the nearest names).
  """
  all_names, rules = list(all_names), [(pattern, value) for pattern, value in rules]
  hits = tree_lib.match(all_names, [pattern for pattern, _ in rules], field)
  return {
    name: rules[hit][1] if hit >= 0 else default for name, hit in zip(all_names, hits, strict=True)
  }


def make(
  stage: dict, params: PyTree, total: int, field: str = "stage"
) -> optax.GradientTransformationExtraArgs:
  """The transformation of a stage.

  Args:
    stage: a stage record: `lr lr_mults schedule optimizer weight_decay grad_clip`.
    params: trainable parameters, concrete or abstract.
    total: steps of the stage.
    field: name of the stage in errors, such as `stages[0]`.

  Returns:
    `init(params) -> state` and `update(grads, state, params, step=, norm=) -> (updates,
    state)`. `step` int32 [] is the step of the stage, what schedules are functions of
    (the optimiser's own count is carried over stages and stands still on a skipped step).
    `norm` f32 [] is the global norm of `grads` when the caller has it.

  Raises:
    ValueError: see `schedule.make`, `direction` and `per_name`.
  """
  all_names = tree_lib.names(params)
  default, groups = schedule_lib.groups(stage["schedule"], total, f"{field}.schedule")
  schedules = [fn for _, fn in groups] + [default]
  indexed = [(pattern, i) for i, (pattern, _) in enumerate(groups)]
  group_of = per_name(all_names, indexed, len(groups), f"{field}.schedule.groups")
  mults = per_name(all_names, stage["lr_mults"], 1.0, f"{field}.lr_mults")
  decays = per_name(all_names, stage["weight_decay"], 0.0, f"{field}.weight_decay")
  inner = direction(stage["optimizer"], f"{field}.optimizer")
  lr, limit = float(stage["lr"]), float(stage["grad_clip"])

  def update(grads, state, params, *, step, norm=None):
    if limit > 0:
      norm = global_norm(grads) if norm is None else norm
      shrink = jnp.minimum(1.0, limit / jnp.maximum(norm, 1e-30))
      grads = jax.tree.map(lambda g: g * shrink.astype(g.dtype), grads)
    updates, state = inner.update(grads, state, params)
    factors = [fn(step) for fn in schedules]

    def leaf(name, u, p):
      value = (lr * mults[name]) * u.astype(jnp.float32)
      if decays[name]:
        value = value + decays[name] * p.astype(jnp.float32)
      return -factors[group_of[name]] * value

    return tree_lib.map_named(leaf, updates, params), state

  return optax.GradientTransformationExtraArgs(inner.init, update)


def global_norm(tree: PyTree) -> jax.Array:
  """sqrt of the sum of squares over all leaves, f32 []; 0 for an empty tree."""
  squares = [jnp.sum(jnp.square(x.astype(jnp.float32))) for x in jax.tree.leaves(tree)]
  return jnp.sqrt(sum(squares, jnp.zeros([], jnp.float32)))


def _unzip(tree: PyTree, like: PyTree, n: int) -> tuple[PyTree, ...]:
  """A tree of n-tuples, shaped `like` but for them -> n trees."""
  return jax.tree.transpose(jax.tree.structure(like), jax.tree.structure((0,) * n), tree)
