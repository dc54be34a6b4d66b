"""Maps between the tensors of a checkpoint and our parameters, both ways and bit for bit.

A `Rule` names a stored tensor, the parameter (or parameters) it becomes and how the axes
move. Axis sizes come from the parameters' shapes, so that a family's rules are a table
without numbers. A `*` in a parameter's name is the place of a stack (`g0/b1`): there the
stored name has `{i}`, the number of the layer, and every layer is read into its row.
A stored name that ends in `[{i}]` is itself stacked: layer i is row i of the tensor.
With `*[NAME]` a rule is for the layers that have a NAME alone, and `{i}` counts those.
"""

import dataclasses
import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

_STACK = re.compile(r"g(\d+)/b(\d+)")
_PLACE = re.compile(r"(.*?)(\*(?:\[\w+\])?)(.*)")


class Rule(NamedTuple):
  """One tensor and what it becomes.

  Attributes:
    src: stored name.
    dst: name of the parameter, or of several that the tensor is cut into along axis `cut`.
    axes: einops pattern from a stored (and cut) tensor to one layer of the parameter, e.g.
      "(h d) i -> i h d"; the right side has single names only. "" = the same axes. A `+` among
      the names of a stored axis, "(h + d) i -> i h d", is where the `dst`s, all of one shape, take
      turns.
    cut: axis of the stored tensor along which it is cut into the `dst`s, when they do not.
  """

  src: str
  dst: str | tuple[str, ...]
  axes: str = ""
  cut: int = 0

  @property
  def dsts(self) -> tuple[str, ...]:
    """`dst` as a tuple."""
    return (self.dst,) if isinstance(self.dst, str) else self.dst


def under(rules: Iterable[Rule], src: str, dst: str) -> tuple[Rule, ...]:
  """The rules with `src` in front of every stored name and `dst` of every parameter's."""
  return tuple(
    Rule(src + r.src, tuple(dst + d for d in r.dsts), r.axes, r.cut)
    if not isinstance(r.dst, str)
    else Rule(src + r.src, dst + r.dst, r.axes, r.cut)
    for r in rules
  )


def linear(src: str, dst: str, weight: str = "o i -> i o", bias: str = "") -> tuple[Rule, ...]:
  """Rules of a torch linear layer: `src.weight`, `src.bias` to `dst/kernel`, `dst/bias`."""
  return Rule(f"{src}.weight", f"{dst}/kernel", weight), Rule(f"{src}.bias", f"{dst}/bias", bias)


def norm(src: str, dst: str) -> tuple[Rule, ...]:
  """Rules of a norm: `src.weight`, `src.bias` to `dst/scale`, `dst/bias`."""
  return Rule(f"{src}.weight", f"{dst}/scale"), Rule(f"{src}.bias", f"{dst}/bias")


def attention(
  src: str, dst: str, o: str = "o_proj", qkv: Iterable[str] = ("q_proj", "k_proj", "v_proj")
) -> tuple[Rule, ...]:
  """Rules of attention from torch linear layers `src.{qkv}` and `src.{o}` to `dst/{q,k,v,o}`."""
  found = []
  for name, layer in zip("qkv", qkv, strict=True):
    found += linear(f"{src}.{layer}", f"{dst}/{name}", "(h d) i -> i h d", "(h d) -> h d")
  return (*found, *linear(f"{src}.{o}", f"{dst}/o", "o (h d) -> h d o"))


def joint(src: str, dst: str, o: str, rows: str = "h d") -> tuple[Rule, ...]:
  """As `attention`, from one tensor `{src}weight` and one `{src}bias` for queries, keys and values.

  Args:
    src: what their names begin with. dst: as there. o: whole name of the output's linear layer.
    rows: axes of the rows; "h + d" = the three take turns by heads.
  """
  kernels, biases = (tuple(f"{dst}/{n}/{leaf}" for n in "qkv") for leaf in ("kernel", "bias"))
  return (
    Rule(f"{src}weight", kernels, f"({rows}) i -> i h d"),
    Rule(f"{src}bias", biases, f"({rows}) -> h d"),
    *linear(o, f"{dst}/o", "o (h d) -> h d o"),
  )


def mlp(src: str, dst: str, up: str = "fc1", down: str = "fc2", gate: str = "") -> tuple[Rule, ...]:
  """Rules of an MLP from torch linear layers `{src}{up}` and so on to `dst/{up,down,gate}`."""
  names = dict(up=up, down=down) | (dict(gate=gate) if gate else {})
  return tuple(r for ours, name in names.items() for r in linear(f"{src}{name}", f"{dst}/{ours}"))


def gated(src: str, dst: str) -> tuple[Rule, ...]:
  """As `mlp`, for a gated one whose layers are called as Llama's."""
  return mlp(f"{src}.", dst, "up_proj", "down_proj", "gate_proj")


class Binding(NamedTuple):
  """A rule spelt out for the parameters there are: `keys[n]` fills row n of every leaf in `dsts`.

  `stacked` is False for parameters without layers; they have a single key.
  """

  dsts: tuple[str, ...]
  keys: tuple[str, ...]
  stacked: bool
  axes: str
  cut: int

  @property
  def turns(self) -> bool:
    """Whether the `dsts` take turns along a stored axis."""
    return "+" in self.axes


@dataclasses.dataclass(frozen=True)
class CkptMap:
  """How a family's checkpoints are read and written.

  Rules speak canonical names: those of the hub's files.

  Attributes:
    rules: a rule whose parameter the model does not have is left out.
    rename: ((regex, replacement), ...), each tried in order (`re.sub`) on every name of a file:
      other layouts to the canonical one. What a file called a tensor is kept for writing it back.
    tied: ((alias, source), ...): the alias may be in a file; it must then be the source's bytes.
    carry: regexes of tensors that no forward pass reads; kept beside the parameters and written
      back.
  """

  rules: tuple[Rule, ...]
  rename: tuple[tuple[str, str], ...] = ()
  tied: tuple[tuple[str, str], ...] = ()
  carry: tuple[str, ...] = ()

  def canonical(self, key: str) -> str:
    """The canonical name of a file's tensor."""
    for pattern, replacement in self.rename:
      key = re.sub(pattern, replacement, key)
    return key

  def bind(self, shapes: Mapping[str, Any]) -> list[Binding]:
    """The rules for the parameters in `shapes` (name -> anything with `.shape`).

    Raises:
      ValueError: a parameter that no rule or more than one fills, or a rule for only some of its
        parameters.
    """
    bindings, filled = [], {}
    for rule in self.rules:
      for binding in _expand(rule, shapes):
        for dst in binding.dsts:
          if dst in filled:
            raise ValueError(f"parameter {dst} is filled by {filled[dst]} and by {rule.src}")
          filled[dst] = rule.src
        bindings.append(binding)
    left = [name for name in shapes if name not in filled]
    if left:
      raise ValueError(f"no rule fills the parameter {left[0]} (and {len(left) - 1} more)")
    return bindings


def _expand(rule: Rule, shapes: Mapping[str, Any]) -> list[Binding]:
  if "*" not in rule.dsts[0]:
    there = [d in shapes for d in rule.dsts]
    if not any(there):
      return []
    if not all(there):
      raise ValueError(f"rule {rule.src}: the model has only some of {', '.join(rule.dsts)}")
    return [Binding(rule.dsts, (rule.src,), False, rule.axes, rule.cut)]
  before, star, after = _PLACE.match(rule.dsts[0]).groups()
  groups = _groups(before, shapes)
  out, offset = [], 0
  for g, kinds in sorted(groups.items()):
    repeats = max(kinds.values())
    places = list(range(max(kinds) + 1))
    if star != "*":
      places = [b for b in places if _has(f"{before}g{g}/b{b}/{star[2:-1]}/", shapes)]
    for n, b in enumerate(places):
      if f"{before}g{g}/b{b}{after}" not in shapes:
        continue
      dsts = tuple(d.replace(star, f"g{g}/b{b}") for d in rule.dsts)
      keys = (rule.src.replace("{i}", str(offset + r * len(places) + n)) for r in range(repeats))
      out.append(Binding(dsts, tuple(keys), True, rule.axes, rule.cut))
    offset += len(places) * repeats
  return out


def _has(prefix: str, shapes: Mapping[str, Any]) -> bool:
  return any(name.startswith(prefix) for name in shapes)


def _groups(prefix: str, shapes: Mapping[str, Any]) -> dict[int, dict[int, int]]:
  """{g: {b: repeats}} of the stack at a prefix."""
  found: dict[int, dict[int, int]] = {}
  for name, leaf in shapes.items():
    match = _STACK.match(name, len(prefix)) if name.startswith(prefix) else None
    if match:
      found.setdefault(int(match[1]), {})[int(match[2])] = leaf.shape[0]
  return found


def split_row(key: str) -> tuple[str, int | None]:
  """A key's tensor and the row of it: "w[3]" -> ("w", 3); ("w", None) without a row."""
  match = re.fullmatch(r"(.*)\[(\d+)\]", key)
  return (match[1], int(match[2])) if match else (key, None)
