"""Training batches: the same for any number of hosts, workers and threads, from any step at once.

Row k of the endless global stream is a pure function of (seed, k): the mixture says which source
gives it and which of its draws it is, the source's shuffle which record that is, and randomness for
preprocessing is keyed by k. Process i of n takes the rows i, i + n, i + 2n, ...; grain reads and
batches them in threads or worker processes. So a batch depends on (seed, step) alone. Nothing is
filtered: a record that cannot be used keeps its row, with weight 0.
"""

import collections
import functools
import hashlib
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from bigvlm.data import mixture as mixture_lib
from bigvlm.processing.image import BadExample
from bigvlm.utils import names

Arrays = dict[str, np.ndarray]
POLICIES = ("skip", "raise")
_SMALL = 4096  # records; see `shuffled`
_CHUNK = 8  # rows; see `Order`


class TooManyBad(RuntimeError):
  """More bad records than the config allows; the message names the last one."""


class Key(NamedTuple):
  """Row `position` of the global stream is record `record` of source number `source`."""

  position: int
  source: int
  record: int


@functools.lru_cache(maxsize=64)
def _permutation(seed: int, epoch: int, size: int) -> np.ndarray:
  """The order of one epoch of a small source."""
  order = np.random.default_rng((seed, epoch)).permutation(size)
  order.flags.writeable = False
  return order


def shuffled(draw: int, size: int, seed: int) -> int:
  """The record at a draw of endless shuffled epochs: each has every record once.

  grain's index shuffle walks through 2^16 numbers to find one below the size: measured 3.6 ms a
  draw for 10 records and 0.07 ms for 500, against 0.004 ms from 2^16 on. Small ones are permuted.
  """
  epoch, i = divmod(draw, size)
  if size <= _SMALL:
    return int(_permutation(seed, epoch, size)[i])
  from grain.experimental import index_shuffle

  return int(index_shuffle(i, max_index=size - 1, seed=(seed + epoch) % 2**32, rounds=4))


class Order:
  """The rows of one process as a source for grain: index j -> the Keys of its j-th `chunk` rows.

  grain spends about 20 us on every element of every stage, hence chunks.

  Args:
    sizes: records of each source.
    parts: weights as integers.
    seeds: of each source's shuffle; None keeps the order of the records.
    process_index, process_count: which rows of the global stream.
    chunk: rows of an element.
    start: rows of this process that are passed over.
    count: examples of a row; with several an element has lists of Keys.
  """

  def __init__(self, sizes, parts, seeds, process_index, process_count, chunk, start=0, count=1):
    self._sizes, self._parts, self._seeds = tuple(sizes), tuple(parts), seeds
    self._first, self._stride = process_index + start * process_count, process_count
    self._chunk, self._count = chunk, count

  def __len__(self) -> int:
    return sys.maxsize

  def __getitem__(self, j: int) -> list[Any]:
    begin = self._first + self._stride * self._chunk * j
    rows = [begin + self._stride * m for m in range(self._chunk)]
    if self._count == 1:
      return [self._key(row) for row in rows]
    return [[self._key(row * self._count + k) for k in range(self._count)] for row in rows]

  def _key(self, position: int) -> Key:
    source, draw = mixture_lib.locate(position, self._parts)
    size = self._sizes[source]
    if self._seeds is None:
      return Key(position, source, draw % size)
    return Key(position, source, shuffled(draw, size, self._seeds[source]))

  def __repr__(self) -> str:
    return f"Order({self._sizes}, {self._parts}, {self._first}, {self._stride})"


class Rows:
  """Keys -> a list of (arrays, notes), one a key; runs in threads and worker processes.

  `notes` is a list of (source, what, record, reason) with what "bad" or "cut".
  """

  def __init__(self, mixture: mixture_lib.Mixture, processor: Any, seed: int):
    self._sources, self._chains = mixture.sources, mixture.chains
    self._packer = processor if hasattr(processor, "join") else None
    self._processor = processor if self._packer is None else processor.one
    always = getattr(self._processor, "random", True)
    self._random = [always or bool(getattr(chain, "ops", True)) for chain in mixture.chains]
    self._key = _seed(seed, "rows", 16)

  def __call__(self, keys: list[Any]) -> list[tuple[Arrays, list]]:
    if self._packer is None:
      return [self._row(key) for key in keys]
    return [self._joined(several) for several in keys]

  def _joined(self, keys: list[Key]) -> tuple[Arrays, list]:
    """Several examples in one row; its `ids` are those of the first."""
    rows = [self._row(key) for key in keys]
    ids = [arrays.pop("ids") for arrays, _ in rows]
    notes = [note for _, some in rows for note in some]
    arrays, left = self._packer.join([arrays for arrays, _ in rows])
    if left:
      reason = f"{left} of {len(rows)} examples did not fit into the row"
      notes.append((keys[0].source, "cut", str(keys[0].record), reason))
    return {**arrays, "ids": ids[0]}, notes

  def _row(self, key: Key) -> tuple[Arrays, list]:
    source, i = self._sources[key.source], key.record
    rng = None
    if self._random[key.source]:  # Making one takes as long as all the rest here.
      rng = np.random.Generator(np.random.Philox(key=self._key, counter=[0, 0, 0, key.position]))
    notes = []
    try:
      example = self._chains[key.source](source[i], rng)
      arrays, cut = self._processor.row(example, rng)
      if cut:
        notes.append((key.source, "cut", str(example.get("id", i)), "text was cut"))
    except BadExample as e:
      arrays = self._processor.blank()
      notes.append((key.source, "bad", e.record or f"{source.name}[{i}]", e.reason))
    except Exception as e:
      e.add_note(f"in record {i} of source {source.name!r}")
      raise
    return {**arrays, "ids": np.array([key.source, i], np.int64)}, notes


def _stack(chunks: list[list[tuple[Arrays, list]]]) -> tuple[Arrays, list]:
  rows = [row for chunk in chunks for row in chunk]
  first = rows[0][0]
  arrays = {key: np.stack([row[key] for row, _ in rows]) for key in first}
  return arrays, [(n, note) for n, (_, notes) in enumerate(rows) for note in notes]


def _seed(seed: int, what: str, size: int = 4) -> int:
  """A seed of `size` bytes for each use: neighbouring seeds would repeat each other's shuffles."""
  digest = hashlib.blake2b(f"{seed}/{what}".encode(), digest_size=size).digest()
  return int.from_bytes(digest, "little")


class Loader:
  """Iterator over this process's rows of the global batches, without end; see `train_loader`.

  Attributes:
    counters: {"bad": {source: n}, "cut": {source: n}} over the batches that were consumed.
    names: source names, in the order of `ids[:, 0]`.
  """

  def __init__(
    self,
    order: Callable[..., Order],
    rows: Rows,
    size: int,
    source_names: list[str],
    options: Mapping[str, Any],
  ):
    self._order, self._rows, self._size = order, rows, size
    self.names = source_names
    self._options = options
    self._step = 0
    self._iterator: Iterator | None = None
    self._clear()

  def _clear(self) -> None:
    self.counters = {what: dict.fromkeys(self.names, 0) for what in ("bad", "cut")}
    self._recent: collections.deque[int] = collections.deque()

  def __iter__(self) -> "Loader":
    return self

  def __next__(self) -> Arrays:
    """{name: [B / process_count, ...]}, with `ids` int64 [.., 2] = (source number, record).

    Raises:
      BadExample: at the first bad record, with policy "raise".
      TooManyBad: when more than max_rate of the last `window` rows were bad, with "skip".
    """
    if self._iterator is None:
      self._iterator = self._start()
    arrays, notes = next(self._iterator)
    for row, (number, what, record, reason) in notes:
      self._note(row, number, what, record, reason)
    self._step += 1
    return arrays

  def _note(self, row: int, number: int, what: str, record: str, reason: str) -> None:
    name = self.names[number]
    self.counters[what][name] += 1
    if what != "bad":
      return
    if self._options["policy"] == "raise":
      raise BadExample(f"{reason} (source {name!r})", record)
    print(
      f"bad record, weight 0: {record}: {reason} (source {name!r})", file=sys.stderr, flush=True
    )
    window, most = self._options["window"], self._options["max_rate"]
    place = self._step * self._size + row
    self._recent.append(place)
    while self._recent[0] <= place - window:
      self._recent.popleft()
    if len(self._recent) > most * window:
      counts = {k: v for k, v in self.counters["bad"].items() if v}
      raise TooManyBad(
        f"{len(self._recent)} bad records among the last {window} rows are over "
        f"bad_records.max_rate={most}; by source: {counts}; the last: {record}: {reason}"
      )

  def _start(self) -> Iterator:
    import grain

    threads, prefetch = self._options["threads"], self._options["prefetch"]
    chunk = max(c for c in range(1, min(self._size, _CHUNK) + 1) if self._size % c == 0)
    count = self._size // chunk
    order = self._order(chunk=chunk, start=self._step * self._size)
    chunks = grain.MapDataset.source(order).map(self._rows)
    if self._options["workers"]:
      _parse_flags()
      read = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=prefetch if threads else 0)
      batches = chunks.batch(count, drop_remainder=True, batch_fn=_stack)
      options = grain.MultiprocessingOptions(
        num_workers=self._options["workers"], per_worker_buffer_size=max(1, prefetch)
      )
      return iter(batches.to_iter_dataset(read).mp_prefetch(options))
    ahead = max(threads, prefetch * count) if threads and prefetch else 0
    read = grain.ReadOptions(num_threads=threads if ahead else 0, prefetch_buffer_size=ahead)
    stream = chunks.to_iter_dataset(read)
    return iter(stream.batch(count, drop_remainder=True, batch_fn=_stack))

  def state(self) -> dict[str, Any]:
    """Where the loader is, as JSON: batches consumed, counters, recent bad rows.

    It says nothing of hosts, workers or threads, and fits any number of them.
    """
    return {
      "step": self._step,
      "counters": {what: dict(counts) for what, counts in self.counters.items()},
      "recent": list(self._recent),
    }

  def restore(self, state: Mapping[str, Any]) -> None:
    """Goes to where `state()` was taken; takes no time whatever the step."""
    step = state.get("step") if isinstance(state, Mapping) else None
    if not isinstance(step, int) or step < 0:
      raise ValueError(f"not a state of a loader: {state!r}")
    self.close()
    self._clear()
    self._step = step
    for what, counts in state.get("counters", {}).items():
      for name, n in counts.items():
        if name in self.counters.get(what, {}):
          self.counters[what][name] = int(n)
    self._recent.extend(int(r) for r in state.get("recent", ()))

  def close(self) -> None:
    """Stops threads and worker processes; the loader can still be used and starts them anew."""
    if self._iterator is not None and hasattr(self._iterator, "close"):
      self._iterator.close()
    self._iterator = None


def _examples(processor: Any) -> int:
  """Examples of a row: one, but of a `processing.packing.Packed`."""
  return processor.count if hasattr(processor, "join") else 1


def _parse_flags() -> None:
  """grain's worker processes read absl flags, which nobody parses in a notebook or a test."""
  from absl import flags

  if not flags.FLAGS.is_parsed():
    flags.FLAGS.mark_as_parsed()


def train_loader(
  mixture: Any,
  processor: Any,
  *,
  batch_size: int,
  seed: int,
  process_index: int = 0,
  process_count: int = 1,
  threads: int = 4,
  workers: int = 0,
  prefetch: int = 2,
  bad_records: Mapping[str, Any] | None = None,
  shuffle: bool = True,
  workdir: str | None = None,
) -> Loader:
  """Batches for training, without end.

  Args:
    mixture: a Mixture, or the dict that `mixture.make` takes.
    processor: see `bigvlm.processing.processor`.
    batch_size: global; a multiple of process_count.
    seed: of order and augmentation.
    process_index, process_count: which rows of each batch are wanted: i, i + n, i + 2n, ...
    threads: that read ahead (in each worker, when there are any); 0 = none.
    workers: processes that read ahead; 0 = in this process.
    prefetch: batches to be ready (in each worker, when there are any).
    bad_records: `dict(policy="skip"|"raise", max_rate=0.01, window=1000)`.
    shuffle: False gives each source in its own order.
    workdir: what "workdir:FILE" arguments of sources are relative to.

  Raises:
    ValueError: a field that does not fit; the message names it.
  """
  mixed = mixture_lib.make(mixture, workdir)
  if batch_size < 1 or batch_size % process_count:
    raise ValueError(f"batch_size={batch_size} is not a multiple of the {process_count} processes")
  if not 0 <= process_index < process_count:
    raise ValueError(f"process {process_index} of {process_count} does not exist")
  for field, value in dict(threads=threads, workers=workers, prefetch=prefetch).items():
    if value < 0:
      raise ValueError(f"loader.{field}={value} must be 0 or more")
  options = {"policy": "skip", "max_rate": 0.01, "window": 1000}
  for key, value in dict(bad_records or {}).items():
    if key not in options:
      raise ValueError(names.unknown("field of bad_records", key, options))
    options[key] = value
  if options["policy"] not in POLICIES:
    raise ValueError(names.unknown("bad_records.policy", options["policy"], POLICIES))

  options.update(threads=threads, workers=workers, prefetch=prefetch)
  sizes = [len(s) for s in mixed.sources]
  seeds = [_seed(seed, f"shuffle/{name}") for name in mixed.names] if shuffle else None
  order = functools.partial(
    Order, sizes, mixed.parts, seeds, process_index, process_count, count=_examples(processor)
  )
  return Loader(
    order, Rows(mixed, processor, seed), batch_size // process_count, mixed.names, options
  )
