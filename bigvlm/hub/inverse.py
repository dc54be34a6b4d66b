"""The way back from a model to a `config.json`: a family's reader, run until it reads the model.

A reader that is run on a config that keeps a list tells which fields the family has and what stands
for those that are not there. Fields are then changed one by one, or two at a time, as long as what
is read comes nearer to the model. No family needs a writer of its own for that.
"""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from bigvlm.hub import fields, rotary, t5, texts, towers

Path = tuple[str, ...]
Facts = Mapping[str, Any]
_FIRSTS = 12  # Changes that are looked at in pairs with another.
_ACTS = (*fields.ACTIVATIONS, *(f"gated-{name}" for name in fields.ACTIVATIONS))
_ACT_FIELDS = ("hidden_act", "hidden_activation", "activation_function", "projector_hidden_act")
# What fields that hold a word may hold; of `model_type` that of a part.
_WORDS: dict[str, Sequence[str]] = dict.fromkeys((*_ACT_FIELDS, "feed_forward_proj"), _ACTS) | {
  "alpha_type": ("float", "vector"),
  "norm_type": ("layer_norm", "rms_norm"),
  "spatial_pool_mode": ("average", "max"),
  "vision_feature_select_strategy": ("default", "full"),
}
_KINDS = {
  "text_config": (*texts.TEXTS, *t5.DECODERS),
  "vision_config": (*towers.TOWERS, "pixtral"),
}
_TYPES = ("full_attention", "sliding_attention")
# Fields that say which layers are which: what is said of them in a model, and how.
_OF_LAYERS: dict[str, tuple[str, Callable[[tuple, int], Any]]] = {
  "cross_attention_layers": ("cross_layers", lambda at, depth: list(at)),
  "cross_layer_interval": ("cross_layers", lambda at, depth: (*at, depth)[1] - at[0] - 1),
  "fullatt_block_indexes": (
    "windows",
    lambda sides, depth: [i for i in range(depth) if not sides[i % len(sides)]],
  ),
  "layer_types": (
    "windows",
    lambda sizes, depth: [_TYPES[sizes[i % len(sizes)] > 0] for i in range(depth)],
  ),
}


class Listed(dict):
  """A config that lists what is asked of it.

  Args:
    given: a config. seen: where (path, value or default) goes. path: of this part.
  """

  def __init__(self, given: Mapping[str, Any], seen: dict[Path, Any], path: Path = ()):
    parts = {k: Listed(v, seen, (*path, k)) for k, v in given.items() if isinstance(v, dict)}
    super().__init__({**given, **parts})
    self._seen, self._path = seen, path

  def get(self, key, default=None):
    value = super().get(key, default)
    self._seen.setdefault((*self._path, key), value)
    return value

  def copy(self):
    return Listed(self, self._seen, self._path)

  def __or__(self, other):
    return Listed({**self, **other}, self._seen, self._path)

  def __ror__(self, other):
    return Listed({**other, **self}, self._seen, self._path)


class Look(NamedTuple):
  """What a reader makes of a config.

  Attributes:
    config: the config. seen: path -> value of every field that was read.
    cost: (differences of kind, of numbers): how far the model is from the one that is wanted.
    left: (name, what it is, what is wanted) of the facts that differ.
    error: why it is no model at all, or "".
  """

  config: dict[str, Any]
  seen: dict[Path, Any]
  cost: tuple[int, int]
  left: tuple[tuple[str, Any, Any], ...]
  error: str = ""


class Search:
  """A search for the config that reads as a model.

  Args:
    read: config -> facts; raises for what is no model.
    want: the facts of the model.
    derived: path -> function of the config: fields that others determine.
  """

  def __init__(
    self,
    read: Callable[[dict], Facts],
    want: Facts,
    derived: Mapping[Path, Callable[[dict], Any]] | None = None,
  ):
    self.read, self.want, self.derived = read, want, derived or {}

  def look(self, config: dict[str, Any]) -> Look:
    """Reads a config."""
    seen: dict[Path, Any] = {}
    try:
      for path, make in self.derived.items():
        config = put(config, path, make(config))
      have = self.read(Listed(config, seen))
    except Exception as e:  # A reader may stumble in any way over what it was never meant for.
      return Look(config, seen, (1 << 30, 0), (), str(e))
    pairs = [(k, have.get(k), self.want.get(k)) for k in {**have, **self.want}]
    left = tuple(p for p in pairs if not same(p[1], p[2]))
    kinds = sum(isinstance(x, (str, bool)) for _, *both in left for x in both)
    return Look(config, seen, (kinds, len(left)), left)

  def solve(self, config: dict[str, Any]) -> Look:
    """The nearest config that is found from this one on."""
    now = self.look(config)
    for guesses in (self._named, self._any):
      now = self._descend(now, guesses)
    while now.left and not now.cost[0]:  # Sizes alone.
      pair = self._pair(now)
      if pair is None:
        break
      now = self._descend(pair, self._any)
    return now

  def _descend(self, now: Look, guesses: Callable[[Look, Path], Iterator[Any]]) -> Look:
    moved = True
    while moved and (now.left or now.error):
      moved = False
      for path in sorted(now.seen, key=_first):
        values = guesses(now, path) if path in now.seen else ()
        found = [self.look(put(now.config, path, v)) for v in values]
        best = min(found, key=lambda look: look.cost, default=now)
        if best.cost < now.cost:
          now, moved = best, True
    return now

  def _named(self, now: Look, path: Path) -> Iterator[Any]:
    return _known(now, path, self.want)

  def _any(self, now: Look, path: Path) -> Iterator[Any]:
    """Also the number that is wanted where a number counts, as much more, as many times."""
    yield from _known(now, path, self.want)
    value = now.seen[path]
    if value is not None and not _is_number(value):
      return
    tried = set()
    for _, have, wanted in self._touched(now, path):
      for h, w in _ends(have, wanted):
        for guess in _guesses(value, h, w):
          if guess is not None and guess not in tried:
            tried.add(guess)
            yield float(guess) if isinstance(value, float) else guess
    if value is not None:
      yield None

  def _touched(self, now: Look, path: Path) -> Sequence[tuple[str, Any, Any]]:
    """The differences that a field has a part in."""
    value = now.seen[path]
    if value is None:
      return now.left
    other = self.look(put(now.config, path, 2 * value or 1))
    if other.error:
      return now.left if abs(value) < 1000 else ()
    haves = {name: have for name, have, _ in other.left}
    return [p for p in now.left if not same(haves.get(p[0], p[2]), p[1])]

  def _pair(self, now: Look) -> Look | None:
    """A better config by two changes, of which the first alone may make it worse."""
    names = {name for name, *_ in now.left}
    firsts = []
    for path in (p for p in now.seen if _first(p) == (True, True)):
      for value in (*self._any(now, path), *_few(now, path)):
        look = self.look(put(now.config, path, value))
        before, after = ({n: h for n, h, _ in x.left if n in names} for x in (now, look))
        if not look.error and before != after:
          firsts.append((path, look))
    firsts.sort(key=lambda first: first[1].cost)
    for path, look in firsts[:_FIRSTS]:
      for other in (p for p in look.seen if p != path and _first(p) == (True, True)):
        for value in self._any(look, other):
          found = self.look(put(look.config, other, value))
          if found.cost < now.cost:
            return found
    return None


def put(config: Mapping[str, Any], path: Path, value: Any) -> dict[str, Any]:
  """A config with another value at a path."""
  head, *rest = path
  inner = put(config.get(head) or {}, tuple(rest), value) if rest else value
  return {**config, head: inner}


def same(a: Any, b: Any) -> bool:
  """Whether two facts are equal; numbers but for their last bits."""
  if isinstance(a, tuple) and isinstance(b, tuple):
    return len(a) == len(b) and all(map(same, a, b))
  if isinstance(a, float) and isinstance(b, (float, int)) and not isinstance(b, bool):
    return abs(a - b) <= 1e-12
  return a == b and isinstance(a, bool) == isinstance(b, bool)


def _first(path: Path) -> tuple[bool, bool]:
  """What kind of part it is comes before its sizes."""
  return path[-1] != "model_type", path[-1] != "rope_parameters"


def _known(now: Look, path: Path, want: Facts) -> Iterator[Any]:
  """Values that the differences name: the other word, what the same number is to be."""
  key, value = path[-1], now.seen[path]
  if key == "model_type":
    yield from (k for k in _KINDS.get(path[0], ()) if len(path) == 2 and k != value)
  elif key == "rope_parameters":
    yield from rotary.back(want)
  elif key in _OF_LAYERS:
    end, make = _OF_LAYERS[key]
    for name, _, wanted in now.left:
      if name.endswith(f".{end}") and wanted:
        yield make(wanted, want[name.replace(end, "depth")])
  elif key == "image_size":
    for name, _, wanted in now.left:
      if name.endswith(".table") and wanted:
        yield wanted[0] * want[name.replace("table", "patch")]
  elif isinstance(value, bool):
    yield not value
  elif isinstance(value, str):
    yield from (w for w in _WORDS.get(key, ()) if w != value)
    yield from (f"{value.rpartition('_')[0]}_{w}" for _, _, w in now.left if _is_number(w))
  else:
    for _, have, wanted in now.left:
      if value is None and isinstance(wanted, (bool, tuple)):
        yield list(wanted) if isinstance(wanted, tuple) else wanted
      elif same(have, value) and wanted is not None:
        yield wanted
      elif (
        isinstance(have, tuple) and isinstance(wanted, tuple) and isinstance(value, (list, tuple))
      ):
        yield list(wanted)


def _guesses(value: Any, have: Any, wanted: Any) -> Iterator[Any]:
  yield wanted
  if value is None or not _is_number(have):
    return
  yield value + wanted - have
  if have and wanted:
    for power in (1, 2, -2):  # Also of an area, by its side, and of what a root is divided by.
      scaled = _whole(value * (wanted / have) ** power)
      yield scaled if isinstance(scaled, int) or isinstance(value, float) else None


def _few(now: Look, path: Path) -> Iterator[int]:
  value = now.seen[path]
  if isinstance(value, int) and not isinstance(value, bool):
    yield from range(1, 9)


def _ends(have: Any, wanted: Any) -> Iterator[tuple[Any, Any]]:
  """Pairs of numbers of two facts: of tuples their first and last."""
  if isinstance(wanted, tuple):
    haves = have if isinstance(have, tuple) and have else (None,)
    pairs = itertools.product(haves[:1], {w: None for w in wanted})
    yield from ((h, w) for h, w in pairs if _is_number(w))
  elif _is_number(wanted):
    yield have, wanted


def _whole(x: float) -> float | int:
  """A number that is nearly an integer as that integer."""
  return round(x) if abs(x - round(x)) < 1e-6 else x


def _is_number(x: Any) -> bool:
  return isinstance(x, (int, float)) and not isinstance(x, bool)
