"""Defaults that every config starts from. Plain values and names only.

A config file has one function, `get_config(arg=None)`, which returns a
`ConfigDict` made by `base(...)` with a tuple of `stage(...)` records. The
fields below are all that exist: anything else is refused by name.
"""

from ml_collections import ConfigDict

# What every stage may say. `docs/config.md` explains each field.
_STAGE = dict(
  name="",
  model=dict(),  # merged over config.model
  processor=dict(),  # merged over config.processor: resolution, sequence length, ...
  data=dict(sources=()),  # mixture: sources are dict(kind=, weight=, ops=(), ...)
  batch_size=32,  # global, in rows
  pack=dict(count=1, length=0),  # examples in a row, and its positions (see processing/packing.py)
  steps=0,  # exactly one of steps / examples / epochs is > 0
  examples=0,
  epochs=0.0,
  train=(".*",),  # regular expressions over parameter names; the rest is frozen
  # Adapters of this rank beside the kernels of targets (names of modules); rank 0 = none. With
  # train=(".*",) they alone train.
  lora=dict(rank=0, alpha=16.0, targets=(".*/blocks/.*/attn/[qv]",), dropout=0.0),
  lr=1e-3,
  lr_mults=(),  # ((regex, factor), ...), first match wins
  schedule=dict(
    kind="cosine", warmup=0.05, cooldown=0.0, timescale=10_000, end=0.0, steps=(), groups=()
  ),
  optimizer=dict(kind="adam", b1=0.9, b2=0.999, eps=1e-8, mu_dtype="float32"),
  weight_decay=(),  # ((regex, value), ...), decoupled, times the schedule but not lr
  grad_clip=1.0,  # global norm; 0 = off
  accumulate=1,  # micro-batches a step
  ema=0.0,  # decay; 0 = off
  objective=dict(kind="prefix_lm"),
  # source: previous, fresh, a workdir or a checkpoint; parts: ((another, (regex, ...)), ...);
  # resample: method for position tables (layers/posemb.py).
  init=dict(
    source="previous",
    fresh=(),
    drop=(),
    parts=(),
    optimizer="fresh",
    resample="linear_corners",
  ),
  evals=(),  # dict(name=, kind=, every=0, ...); every 0 = at the end of the stage only
  mesh=dict(),  # merged over config.mesh
)

_BASE = dict(
  name="",
  seed=0,
  model=dict(),
  processor=dict(),
  init=dict(source=""),  # published checkpoint of a model config: hf:OWNER/NAME
  hub=dict(),  # fields of its config.json that the model does not tell, for `save_hf`
  dtype=dict(params="float32", compute="float32", logits="float32"),
  mesh=dict(data=-1, fsdp=1, tensor=1),
  rules=(),  # ((regex, (axis or None per trailing dimension)), ...)
  remat="none",  # none | dots | full
  layers="loop",  # loop | scan
  # XLA's, by name, for the training step and the initialisation; none = its defaults.
  compiler_options=dict(),
  checkpoint=dict(every_steps=0, every_seconds=120.0, keep=2, keep_every=0, verify="full"),
  log=dict(every=50, tensorboard=True, profile_at=-1, profile_steps=5),
  loader=dict(threads=4, workers=0, prefetch=2),
  bad_records=dict(policy="skip", max_rate=0.01),
  nonfinite=dict(policy="skip", max_in_a_row=10, max_rollbacks=3),
  prepare=dict(),  # things made before the first stage: tokenizer, mask codec
  report=dict(),
  stages=(),
)


def _fill(defaults: dict, given: dict, where: str) -> ConfigDict:
  unknown = sorted(set(given) - set(defaults))
  if unknown:
    raise ValueError(f"{where} has no field {unknown[0]!r}; fields: {', '.join(sorted(defaults))}")
  out = ConfigDict(defaults)
  for key, value in given.items():
    if isinstance(value, (dict, ConfigDict)) and isinstance(defaults[key], dict):
      out[key] = ConfigDict({**defaults[key], **dict(value)})
    else:
      out[key] = value
  return out


def stage(**fields) -> ConfigDict:
  """One stage record, with every field present."""
  return _fill(_STAGE, fields, "a stage")


def base(**fields) -> ConfigDict:
  """A config, with every field present."""
  return _fill(_BASE, fields, "a config")
