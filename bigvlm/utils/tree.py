"""Trees with names: every leaf has a '/'-joined name such as `encoders/image/posemb`.

Regular expressions over names must match the whole name (`re.fullmatch`), so a
pattern never catches a parameter that its author did not think of.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax

from bigvlm.utils import names as names_lib

PyTree = Any


def _part(key) -> str:
  for attribute in ("key", "name", "idx"):
    if hasattr(key, attribute):
      return str(getattr(key, attribute))
  return str(key)


def flatten(tree: PyTree) -> dict[str, Any]:
  """Leaves by name, in tree order. Dict keys, field names and indices make the name.

  Raises:
    ValueError: two leaves have one name (a key that holds a '/').
  """
  out = {}
  for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
    name = "/".join(_part(key) for key in path)
    if name in out:
      raise ValueError(f"two leaves of the tree are named {name!r}")
    out[name] = leaf
  return out


def unflatten(flat: Mapping[str, Any]) -> dict:
  """Nested dicts from leaves by name: the inverse of `flatten` for a tree of dicts.

  Raises:
    ValueError: a name is also the beginning of another (`a` and `a/b`).
  """
  out = {}
  for name, leaf in flat.items():
    *parents, last = name.split("/")
    node = out
    for parent in parents:
      node = node.setdefault(parent, {})
      if not isinstance(node, dict):
        raise ValueError(f"{name!r} lies below another leaf")
    if last in node:
      raise ValueError(f"{name!r} is a leaf and has leaves below it")
    node[last] = leaf
  return out


def names(tree: PyTree) -> list[str]:
  """Names of the leaves, in tree order."""
  return list(flatten(tree))


def map_named(fn: Callable[..., Any], tree: PyTree, *rest: PyTree) -> PyTree:
  """`jax.tree.map` whose function gets the name first: `fn(name, leaf, *other leaves)`."""
  return jax.tree_util.tree_map_with_path(
    lambda path, *leaves: fn("/".join(_part(key) for key in path), *leaves), tree, *rest
  )


def match(all_names: Iterable[str], patterns: Iterable[str], what: str = "pattern") -> list[int]:
  """For each name the index of the first pattern that matches all of it, or -1.

  Args:
    all_names: names to look at.
    patterns: regular expressions, tried in order.
    what: where the patterns come from, for messages: `"stages[0].train"`.

  Raises:
    ValueError: a pattern is no regular expression, or matches no name at all.
  """
  all_names = list(all_names)
  if isinstance(patterns, str):
    raise ValueError(f"{what}: wants a tuple of patterns, got the string {patterns!r}")
  compiled = []
  for pattern in patterns:
    try:
      compiled.append(re.compile(pattern))
    except re.error as e:
      raise ValueError(f"{what}: {pattern!r} is no regular expression: {e}") from None
  for regex in compiled:
    if not any(regex.fullmatch(name) for name in all_names):
      raise ValueError(_no_match(regex.pattern, all_names, what))
  return [next((i for i, r in enumerate(compiled) if r.fullmatch(n)), -1) for n in all_names]


def _no_match(pattern: str, all_names: list[str], what: str) -> str:
  line = f"{what}: the pattern {pattern!r} matches no parameter"
  inside = [n for n in all_names if re.match(pattern, n)]
  if inside:
    return f"{line}; {inside[0]!r} only begins so: patterns must match whole names, add '.*'"
  # Prefixes are names too: `encoder/.*` is near to `encoders/image/...`.
  prefixes = {"/".join(n.split("/")[:k]) for n in all_names for k in range(1, n.count("/") + 2)}
  plain = re.sub(r"[\\^$.*+?()\[\]|]+", "", pattern).strip("/")
  near = names_lib.nearest(plain, sorted(prefixes))
  if near:
    return f"{line}; did you mean {' or '.join(repr(n) for n in near)}?"
  return f"{line}; they begin with {', '.join(sorted({n.split('/')[0] for n in all_names}))}"


def mask(tree: PyTree, patterns: Iterable[str], what: str = "pattern") -> PyTree:
  """A tree of bool like `tree`: True where a pattern matches the whole name of the leaf.

  Raises:
    ValueError: as `match`.
  """
  hits = match(names(tree), patterns, what)
  return jax.tree.unflatten(jax.tree.structure(tree), [hit >= 0 for hit in hits])
