"""What all evaluators share: which examples, who scores them, and how the scores meet.

A process of a multi-process run scores examples i, i + n, .. of n processes; all get all rows, so
that the metrics are the same numbers on every process and for any number of processes.
"""

import base64
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from bigvlm.processing import image as images
from bigvlm.processing import ops
from bigvlm.utils import log, names

# Fields of every evaluator; `every` and `name` are the trainer's.
FIELDS = dict(name="", kind="", every=0, data=None, examples=0, batch_size=64)
# Fields of those that let the model write: `beams` above 0 searches, as `api.Model.generate` does.
WRITING = dict(max_new_tokens=64, beams=0, length_penalty=0.0)
_LOOK_AT = 20  # first records, one of which must be readable
_AT_ONCE = 256  # examples, with their pixels, that are held in memory


class Evaluator:
  """Runs a model over examples and scores it.

  Config fields: `name` (before the slash in metric names; the trainer adds it), `kind`, `every`,
  `data` (record of a source, or a source), `examples` (0 = all, else that many from the start),
  `batch_size`, and those in the `fields` of the subclass. Unknown fields raise a ValueError with
  the nearest names.

  A record whose image cannot be read is left out of the scores, with a warning that names it.
  Subclasses give `rows`, `summarise` and `record`.
  """

  fields: dict[str, Any] = {}

  def __init__(self, cfg: Mapping):
    known = FIELDS | self.fields
    self.label = f"evaluator {cfg.get('name') or cfg.get('kind') or type(self).__name__!r}"
    for key in cfg:
      if key not in known:
        raise ValueError(f"{self.label}: {names.unknown('field', key, known)}")
    self.cfg = known | {key: cfg[key] for key in cfg}
    if self.cfg.get("length_penalty") and not self.cfg["beams"]:
      raise ValueError(f"{self.label}: length_penalty is of a search; set beams as well")
    if not self.cfg["data"]:
      raise ValueError(f"{self.label}: field 'data' is missing: the source of its examples")
    self._source = None

  @property
  def source(self):
    """The source of examples, opened at its first use."""
    if self._source is None:
      from bigvlm.data import sources

      self._source = sources.make(self.cfg["data"])
    return self._source

  def __len__(self) -> int:
    size = len(self.source)
    wanted = int(self.cfg["examples"])
    if wanted < 0 or wanted > size:
      raise ValueError(f"{self.label}: examples={wanted}, but {self.source.name} has {size}")
    if not (wanted or size):
      raise ValueError(f"{self.label}: {self.source.name} has no examples")
    return wanted or size

  def check(self) -> None:
    """Opens the source and reads a record, so that a wrong path is told before anything is trained.

    Raises:
      ValueError, OSError: what the source says, `examples` beyond its end, or that none of its
        first records can be read.
    """
    first = None
    for i in range(min(len(self), _LOOK_AT)):
      found = self.example(i)
      if not isinstance(found, str):
        return
      first = first or found
    raise ValueError(f"{self.label}: none of its first records can be read; the first: {first}")

  def run(self, model) -> dict[str, float]:
    """Scores `model` (an `api.Model`) on every example once: metric name -> float.

    In a multi-process run all processes must call it; all get the same metrics.
    """
    metrics = {}
    for key, (total, count) in self.summarise(self.collect(model, len(self))).items():
      if not count:  # 0 / 0 says nothing
        continue
      value = float(total) / float(count)
      if math.isfinite(value):
        metrics[key] = value
      else:
        log.warn(f"{self.label}: metric {key!r} is {value} and is left out")
    return metrics

  def collect(self, model, n: int) -> list[dict]:
    """Rows of the examples 0 .. n-1 that can be read, in order, each once, on every process."""
    index, count = processes()
    mine = []
    for batch in chunks(n, index, count):
      found = [(i, real, self.example(i)) for i, real in batch]
      good = [(i, real, example) for i, real, example in found if not isinstance(example, str)]
      mine += [dict(i=i, bad=why) for i, real, why in found if real and isinstance(why, str)]
      if good or count > 1:
        rows = self.rows(model, [example for _, _, example in good])
        # A process with one example less repeats the last, so that all take equally many steps.
        mine += [{"i": i, **row} for (i, real, _), row in zip(good, rows, strict=True) if real]
    rows = sorted((row for part in gather(mine) for row in part), key=lambda row: row["i"])
    if [row["i"] for row in rows] != list(range(n)):
      raise RuntimeError(f"{self.label}: examples were lost or counted twice between processes")
    bad = [row["bad"] for row in rows if "bad" in row]
    if bad and index == 0:
      log.warn(f"{self.label}: {len(bad)} of {n} examples are left out; the first: {bad[0]}")
    if len(bad) == n:
      raise ValueError(f"{self.label}: none of its {n} examples can be read; the first: {bad[0]}")
    return [row for row in rows if "bad" not in row]

  def example(self, i: int) -> dict | str:
    """Example i with its image decoded to uint8 [H, W, 3], or what is wrong with it.

    Several images become a list of as many.
    """
    try:
      example = self.source[i]
      record, found = str(example.get("id", i)), self.want(example, "image")
      several = isinstance(found, (list, tuple))
      pixels = [images.decode(one, record=record) for one in (found if several else [found])]
      return example | dict(image=pixels if several else pixels[0])
    except images.BadExample as e:
      return str(e)

  def predictions(self, model, n: int) -> list[dict]:
    """What the model says of the first n examples, for people to look at.

    Returns: records with `image` (uint8 [H, W, 3]), `prompt`, `target`, `answer` (strings),
    `boxes` (list of (y0, x0, y1, x1 in [0, 1], name)) and `mask` (bool [H, W] or None) of the
    answer, `target_boxes`, `target_mask`, and `right`, the verdict.
    """
    rows = self.collect(model, min(n, len(self)))
    return [prediction(**self.record(self.example(row["i"]), row)) for row in rows]

  def rows(self, model, examples: list[dict]) -> list[dict]:
    """Runs the model: one row of JSON values for each example."""
    raise NotImplementedError

  def summarise(self, rows: list[dict]) -> dict[str, tuple[float, float]]:
    """All rows -> metric name -> (sum, count)."""
    raise NotImplementedError

  def record(self, example: dict, row: dict) -> dict:
    """Fields of `blank_record` for one example."""
    raise NotImplementedError

  def want(self, example: dict, *keys: str):
    """The first of `keys` that the example has; raises a ValueError with its name if none."""
    for key in keys:
      if key in example:
        return example[key]
    raise ValueError(
      f"{self.label}: example {example.get('id', '?')} has no field {' or '.join(map(repr, keys))};"
      f" fields: {', '.join(sorted(example))}"
    )

  def generate(self, model, examples: list[dict]) -> list[str]:
    """Answers to the examples' prefixes, greedy or of a search, by the fields in `WRITING`."""
    prompts = [self.want(e, "prefix") for e in examples]
    batch = int(self.cfg["batch_size"])
    pixels = [e["image"] for e in examples]
    how: dict[str, Any] = dict(max_new_tokens=int(self.cfg["max_new_tokens"]), batch_size=batch)
    if self.cfg["beams"]:
      how |= dict(beams=int(self.cfg["beams"]), length_penalty=float(self.cfg["length_penalty"]))
    try:
      return model.generate(pixels, prompts, **how)
    except ValueError as e:  # a prompt that is too long, a model that cannot write
      raise ValueError(f"{self.label}: {e}") from e


def prediction(
  *, image, prompt, target, answer, right, boxes=(), mask=None, target_boxes=(), target_mask=None
) -> dict:
  """A prediction record, as `Evaluator.predictions` gives it; several images side by side."""
  return dict(
    image=beside(image) if isinstance(image, (list, tuple)) else image,
    prompt=prompt,
    target=target,
    answer=answer,
    right=bool(right),
    boxes=[(tuple(map(float, box)), str(name)) for box, name in boxes],
    mask=mask,
    target_boxes=[(tuple(map(float, box)), str(name)) for box, name in target_boxes],
    target_mask=target_mask,
  )


def beside(pictures: Sequence[np.ndarray], most: int = 4) -> np.ndarray:
  """Up to `most` of the pictures, evenly chosen, in a row of the first one's height."""
  chosen = np.unique(np.linspace(0, len(pictures) - 1, min(most, len(pictures))).round())
  height = pictures[0].shape[0]
  row = [pictures[int(i)] for i in chosen]
  row = [ops.resize(p, (height, max(1, p.shape[1] * height // p.shape[0]))) for p in row]
  return np.concatenate(row, axis=1)


def chunks(n: int, index: int, count: int) -> Iterator[list[tuple[int, bool]]]:
  """The slice [index::count] of n examples as lists of (example, is it real).

  All processes get lists of the same lengths, about equal to each other (one shape to compile);
  what is missing at the end is a repetition of the last example that is not real.
  """
  slots = -(-n // count)
  parts = -(-slots // _AT_ONCE)
  for part in range(parts):
    wanted = range(slots * part // parts, slots * (part + 1) // parts)
    numbers = [slot * count + index for slot in wanted]
    yield [(min(i, n - 1), i < n) for i in numbers]


def processes() -> tuple[int, int]:
  """This process's number and how many there are."""
  import jax

  return jax.process_index(), jax.process_count()


def gather(part: Any) -> list[Any]:
  """Every process's `part`, in the order of the processes, on every process.

  `part` is made of JSON values and float32 arrays.
  """
  _, count = processes()
  if count == 1:
    return [part]
  from jax.experimental import multihost_utils

  return exchange(part, multihost_utils.process_allgather)


def exchange(part: Any, allgather: Callable[[np.ndarray], np.ndarray]) -> list[Any]:
  """`gather` over a given all-gather of arrays: [..] -> [processes, ..].

  The parts travel as bytes: numbers keep their 64 bits, and parts may differ in size.
  """
  data = np.frombuffer(json.dumps(part, default=_pack).encode(), np.uint8)
  sizes = np.asarray(allgather(np.array([data.size], np.int32))).reshape(-1)
  padded = np.zeros(int(sizes.max()), np.uint8)
  padded[: data.size] = data
  table = np.asarray(allgather(padded)).reshape(len(sizes), -1)
  return [
    json.loads(row[:size].tobytes(), object_hook=_unpack)
    for row, size in zip(table, sizes, strict=True)
  ]


def _pack(value: np.ndarray) -> dict:
  data = np.ascontiguousarray(value, np.float32)
  return {"f32": base64.b64encode(data.tobytes()).decode(), "shape": data.shape}


def _unpack(value: dict) -> Any:
  if "f32" not in value:
    return value
  return np.frombuffer(base64.b64decode(value["f32"]), np.float32).reshape(value["shape"])
