"""What the recipes of published systems share: a checkpoint, stages over it, and their toy.

A recipe names the checkpoint it starts from and, for each published stage, what trains, on which
data, for how long. `tiny` runs the same stages for a few steps on a toy of the system.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from bigvlm import config
from bigvlm.configs import common
from bigvlm.utils import jaxcache

# Stages of pairs reject the answer "no 7 2"; the others do not read it.
_DIGITS = dict(
  kind="digits",
  name="toy",
  split="train",
  digits=(1, 2),
  tasks=dict(caption=1.0),
  ops=(dict(op="template", pattern="no {suffix}", to="rejected"),),
)
_WORDS = dict(op="keep", fields=("prefix", "suffix"))

# Fields of a stage that most of them share.
SHARED = dict(
  schedule=dict(kind="cosine", warmup=0.03),
  optimizer=dict(kind="adam", b2=0.999),
  objective=dict(kind="prefix_lm", normalize="token"),
)
CONNECTOR, TEXT, ALL = ("connector/.*",), ("connector/.*", "decoder/.*"), (".*",)


def decay(value: float, lr: float) -> tuple[tuple[str, float], ...]:
  """Weight decay as PyTorch's AdamW has it, times the learning rate; none of norms and biases."""
  return ((r".*/(bias|scale)", 0.0), (".*", value * lr))


def data(*names: str, weights: Sequence[float] = (), **source) -> dict[str, Any]:
  """A mixture of JSON Lines `data/NAME.jsonl`; their records as `docs/data.md` says."""
  weights = weights or (1.0,) * len(names)
  return dict(
    sources=tuple(
      dict(kind="jsonl", name=name, path=f"data/{name}.jsonl", weight=weight, **source)
      for name, weight in zip(names, weights, strict=True)
    )
  )


def pairs(*names: str) -> dict[str, Any]:
  """The same of pairs of answers, with pictures or without."""
  return data(*names, fields=("prefix", "suffix", "rejected"))


def make(
  arg: str | None,
  *,
  name: str,
  source: str,
  toy: str,
  stages: Sequence[Mapping[str, Any]],
  text_len: int = 2048,
  read_len: int = 1024,
  media_len: int = 1,
  tiny: tuple[int, int] = (64, 1),
  dtype: str = "bfloat16",
  pictures: bool = True,
):
  """A recipe's config.

  Args:
    arg: of the config: `source` (another checkpoint, e.g. one to go on from), `tiny`; or what
      `config.parse_arg` made of it.
    name: of the config. source: hub id of the checkpoint that the first stage starts from.
    toy: the checkpoint of `tiny`, a key of `bigvlm/hub/toys.json`.
    stages: fields of `common.stage` of each, and `fresh`, patterns of parameters that it draws
      anew; `new`, of those that its checkpoint has not; `checkpoint`, hub id and toy of another
      that it is of; `parts`, of `init`. After the first one a stage starts from the one before,
      or, with `parts`, from the checkpoint again.
    text_len, read_len, media_len: of the processor, see `bigvlm.hub.training`.
    tiny: text_len and media_len of the toy.
    dtype: compute dtype.
    pictures: whether the toy's records have any.
  """
  a = config.parse_arg(arg, source=source) if arg is None or isinstance(arg, str) else arg
  c = common.base(name=name)
  where = "workdir:toy" if a.tiny else a.source
  c.model = dict(kind="checkpoint", source=where)
  lengths = dict(text_len=text_len, read_len=read_len, media_len=media_len)
  if a.tiny:
    lengths = dict(text_len=tiny[0], read_len=16, media_len=tiny[1])
    c.mesh = dict(data=1, fsdp=1, tensor=1)
    c.compiler_options = dict(jaxcache.QUICK)
    c.log = dict(c.log, every=1, tensorboard=False)
  else:
    c.dtype = dict(params="float32", compute=dtype, logits="float32")
  c.processor = dict(kind="checkpoint", source=where, **lengths)
  made, toys = [], dict(toy=toy)
  for n, given in enumerate(stages):
    fields = dict(given)
    fresh, new, parts = (fields.pop(key, ()) for key in ("fresh", "new", "parts"))
    start, own = "previous" if n and not parts else where, {}
    if "checkpoint" in fields:
      start, name = fields.pop("checkpoint")
      if a.tiny:
        start, toys[name] = f"workdir:{name}", name
      own = dict(source=start)
    fields["model"] = fields.get("model", {}) | own
    fields["init"] = dict(source=start, fresh=(*fresh, *new), drop=fresh, parts=parts)
    if a.tiny:
      for key in ("epochs", "examples"):
        fields.pop(key, None)
      digits = _DIGITS if pictures else _DIGITS | dict(ops=(*_DIGITS["ops"], _WORDS))
      fields |= dict(steps=2, batch_size=2, lr=1e-2, accumulate=1, data=dict(sources=(digits,)))
      fields["schedule"] = dict(kind="constant", warmup=0.0)
      fields.pop("mesh", None)
      fields.pop("processor", None)
    fields["processor"] = fields.get("processor", {}) | own
    made.append(common.stage(**fields))
  c.stages = tuple(made)
  if a.tiny:
    c.prepare = dict(toys=toys)
  return c
