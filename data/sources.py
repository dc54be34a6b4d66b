"""Random-access sources of examples, and the table that configs name them by.

A source has `__len__`, `__getitem__(i) -> example` (a dict with at least `id`) and `name`. It must
pickle (files are opened when first needed) and be safe to read from several threads. A record that
cannot be used raises `BadExample`; the loader then keeps its row with weight 0, or stops.
"""

import importlib
import inspect
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from bigvlm.processing import ops
from bigvlm.processing.image import BadExample
from bigvlm.utils import names

Example = dict[str, Any]


class Source(Protocol):
  """What the loader needs of a source."""

  name: str

  def __len__(self) -> int: ...

  def __getitem__(self, i: int) -> Example: ...


class Memory:
  """Examples given as a list of dicts.

  Args:
    examples: the list; an example without `id` gets "NAME[i]".
    name: name of the source.
  """

  def __init__(self, examples: Sequence[Mapping[str, Any]], name: str = "memory"):
    self.name = name
    self._examples = [dict(e) for e in examples]

  def __len__(self) -> int:
    return len(self._examples)

  def __getitem__(self, i: int) -> Example:
    return {"id": f"{self.name}[{i}]", **self._examples[i]}


# kind -> class, or "module:Class" for what should be imported only when it is used.
SOURCES: dict[str, Any] = {
  "memory": Memory,
  "jsonl": "bigvlm.data.jsonl:Jsonl",
  "tfds": "bigvlm.data.records:Tfds",
  "arrayrecord": "bigvlm.data.records:ArrayRecord",
  "digits": "bigvlm.data.digits:Digits",
  "digit_masks": "bigvlm.data.digits:Masks",
}
MIXTURE_FIELDS = ("kind", "weight", "ops")


class Fields:
  """Which fields of a record become which of an example.

  Args:
    fields: names that the record must have, or {example field: record field}. Fields that are not
      mentioned come along under their own names.
    constant: {field: value} added to every example, e.g. {"prefix": "caption en"}.
  """

  def __init__(self, fields: Sequence[str] | Mapping[str, str], constant: Mapping | None = None):
    self._map = dict(fields) if isinstance(fields, Mapping) else {f: f for f in fields}
    self._constant = dict(constant or {})

  def __call__(self, record: Mapping[str, Any], where: str) -> Example:
    """The example of one record; BadExample names the record and the field that is missing."""
    taken = set(self._map.values())
    out = {k: v for k, v in record.items() if k not in taken}
    out.update(self._constant)
    for field, key in self._map.items():
      if key in record:
        out[field] = record[key]
      elif field not in self._constant:
        raise BadExample(f"has no field {key!r}; it has {', '.join(map(str, record))}", where)
    return out


def plain(value: Any) -> Any:
  """Config containers as dicts and tuples, all the way down."""
  if isinstance(value, Mapping) or hasattr(value, "to_dict"):
    return {k: plain(v) for k, v in value.items()}
  if isinstance(value, (list, tuple)):
    return type(value)(plain(v) for v in value) if type(value) in (list, tuple) else value
  return value


def resolve(kind: str) -> type:
  """The class of a kind: a name of the table, or "pkg.mod:Class" of anyone's code."""
  found = SOURCES.get(kind, kind if ":" in kind else None)
  if found is None:
    raise ValueError(names.unknown("source", kind, SOURCES))
  if not isinstance(found, str):
    return found
  module, _, attribute = found.partition(":")
  try:
    return getattr(importlib.import_module(module), attribute)
  except ModuleNotFoundError as e:
    raise ValueError(f"source {kind!r}: {e}") from None
  except AttributeError:
    raise ValueError(f"source {kind!r}: module {module!r} has no {attribute!r}") from None


def make(cfg: Mapping[str, Any] | Source, workdir: str | None = None) -> Source:
  """Builds one source.

  Args:
    cfg: `dict(kind=, name=, ops=(), **arguments of the source)`, or a source, returned as it is.
      With `ops`, examples come preprocessed, each with randomness of its own that is the same
      every time (for evaluation; in training the loader applies them).
    workdir: what an argument "workdir:FILE" is relative to.

  Raises:
    ValueError: unknown kind, unknown or missing argument.
  """
  if not isinstance(cfg, Mapping) and not hasattr(cfg, "to_dict"):
    return cfg
  cfg = plain(cfg)
  if "kind" not in cfg:
    raise ValueError(f"a source is dict(kind=NAME, ...); 'kind' is missing in {sorted(cfg)}")
  cls = resolve(cfg["kind"])
  steps = ops.chain(cfg.get("ops", ()))
  kwargs = {k: _path(v, workdir) for k, v in cfg.items() if k not in MIXTURE_FIELDS}
  known = inspect.signature(cls).parameters
  takes_any = any(p.kind == p.VAR_KEYWORD for p in known.values())
  if not kwargs.get("name") and "name" in kwargs:
    del kwargs["name"]
  for key in kwargs:
    if key not in known and not takes_any:
      raise ValueError(names.unknown(f"argument of source {cfg['kind']!r}", key, known))
  for key, p in known.items():
    if p.default is p.empty and p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY):
      if key not in kwargs:
        raise ValueError(f"source {cfg['kind']!r} needs the argument {key!r}")
  source = cls(**kwargs)
  return Prepared(source, steps) if steps.ops else source


def _path(value: Any, workdir: str | None) -> Any:
  if isinstance(value, str) and value.startswith("workdir:"):
    if workdir is None:
      raise ValueError(f"source argument {value!r} needs a working directory")
    return f"{workdir}/{value.removeprefix('workdir:')}"
  return value


class Prepared:
  """A source whose examples went through ops, with one fixed draw of randomness an example."""

  def __init__(self, source: Source, steps: ops.Chain):
    self.name, self._source, self._steps = source.name, source, steps

  def __len__(self) -> int:
    return len(self._source)

  def __getitem__(self, i: int) -> Example:
    return self._steps(self._source[i], np.random.default_rng((0, i)))


class eval_slice:
  """The examples of one process out of several, for evaluation: each exactly once overall.

  Process p has the records p, p + n, p + 2n, ...; the first processes may have one more than the
  others. Iterates over (index, example), in order.

  Args:
    source: any source.
    process_index, process_count: p and n.
  """

  def __init__(self, source: Source, process_index: int = 0, process_count: int = 1):
    if not 0 <= process_index < process_count:
      raise ValueError(f"process {process_index} of {process_count} does not exist")
    self._source = source
    self.indices = range(process_index, len(source), process_count)

  def __len__(self) -> int:
    return len(self.indices)

  def __iter__(self) -> Iterator[tuple[int, Example]]:
    for i in self.indices:
      yield i, self._source[i]
