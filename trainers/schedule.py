"""Learning-rate schedules as functions of the stage step.

Every schedule is a factor in [0, 1]-ish that multiplies both the learning rate
and the weight decay (see `trainers.optim`). Step 0 is the first step of the
stage; with a warm-up of w steps the factor there is 0 and reaches its full
value at step w, as in big_vision's `create_learning_rate_schedule`.
"""

import jax.numpy as jnp

from bigvlm.utils import names

KINDS = ("cosine", "linear", "rsqrt", "constant", "steps")
_FIELDS = ("kind", "warmup", "cooldown", "timescale", "end", "steps", "groups")


def length(value: float, total: int, field: str) -> int:
  """Steps meant by `value`: a fraction of `total` when a float below 1, else a number of steps.

  Raises:
    ValueError: a negative length, or one beyond the stage.
  """
  steps = round(value * total) if isinstance(value, float) and value < 1 else int(value)
  if steps < 0 or steps > total:
    raise ValueError(f"{field}={value} is {steps} steps, but the stage has {total}")
  return steps


def make(cfg: dict, total: int, field: str = "schedule"):
  """Returns `step -> f32[]`, the factor at a step.

  Args:
    cfg: `kind` (cosine, linear, rsqrt, constant, steps), `warmup` and `cooldown`
      (steps, or a fraction of the stage when below 1), `timescale` (steps,
      rsqrt only: factor = 1/sqrt(1 + t/timescale)), `end` (factor that cosine
      and linear end at), `steps` (kind steps only: ((where, factor), ...), the
      factor from that step on, or from that fraction of the stage; 1 before the first).
    total: steps in the stage.
    field: where `cfg` stands in the config, for errors.

  Raises:
    ValueError: unknown kind or field; warm-up or cool-down longer than the stage;
      `steps` of another kind, none, or out of order.
  """
  cfg = dict(cfg)
  kind = cfg.get("kind", "cosine")
  if kind not in KINDS:
    raise ValueError(f"{field}.kind: " + names.unknown("schedule", kind, KINDS))
  for key in cfg:
    if key not in _FIELDS:
      raise ValueError(f"{field}: " + names.unknown("schedule field", key, _FIELDS))
  warmup = length(cfg.get("warmup", 0), total, f"{field}.warmup")
  cooldown = length(cfg.get("cooldown", 0), total, f"{field}.cooldown")
  timescale = float(cfg.get("timescale", 10_000))
  end = float(cfg.get("end", 0.0))
  steps = _steps(kind, cfg.get("steps", ()), total, f"{field}.steps")

  def factor(step):
    step = jnp.asarray(step, jnp.float32)
    progress = jnp.clip((step - warmup) / max(total - warmup, 1), 0.0, 1.0)
    if kind == "cosine":
      value = end + (1.0 - end) * 0.5 * (1.0 + jnp.cos(jnp.pi * progress))
    elif kind == "linear":
      value = end + (1.0 - end) * (1.0 - progress)
    elif kind == "rsqrt":
      value = 1.0 / jnp.sqrt(1.0 + jnp.maximum(step - warmup, 0.0) / timescale)
    else:
      value = jnp.ones_like(step)
    for first, scale in steps:
      value = jnp.where(step >= first, scale, value)
    if warmup:
      value = value * jnp.minimum(1.0, step / warmup)
    if cooldown:
      value = value * jnp.clip((total - step) / cooldown, 0.0, 1.0)
    return value

  return factor


def _steps(kind: str, steps, total: int, field: str) -> list[tuple[int, float]]:
  """[(first step, factor)] of a schedule of steps; none of another kind."""
  if bool(steps) != (kind == "steps"):
    raise ValueError(f"{field}={steps!r}, but kind={kind!r}: kind 'steps' has some, others none")
  out = [(length(where, total, f"{field}[{i}]"), float(x)) for i, (where, x) in enumerate(steps)]
  if [first for first, _ in out] != sorted(first for first, _ in out):
    raise ValueError(f"{field}={steps!r}: of {total} steps they are not in order")
  return out


def groups(cfg: dict, total: int, field: str = "schedule"):
  """Returns (default schedule, ((regex, schedule), ...)).

  A group's dict is merged over the default's fields, so
  `groups=((r"encoders/image/.*", dict(kind="linear", warmup=0.5)),)` changes
  what it names only. The first regex that matches a parameter wins.
  """
  base = {key: value for key, value in dict(cfg).items() if key != "groups"}
  made = []
  for i, (pattern, over) in enumerate(cfg.get("groups", ())):
    made.append((pattern, make({**base, **dict(over)}, total, f"{field}.groups[{i}]")))
  return make(base, total, field), tuple(made)
