"""Messages for names that are not there: what exists, and what was probably meant."""

import difflib
from collections.abc import Iterable

_LISTED = 30  # More names than this make a line nobody reads.


def nearest(name: str, options: Iterable[str], n: int = 3) -> list[str]:
  """The up to `n` options that look most like `name`, best first; may be empty."""
  options = [str(o) for o in options]
  lower = {o.lower(): o for o in reversed(options)}
  found = difflib.get_close_matches(str(name).lower(), list(lower), n=n, cutoff=0.5)
  return [lower[o] for o in found]


def unknown(kind: str, name: str, options: Iterable[str]) -> str:
  """One line for a name that no option has, to be raised as a ValueError.

  >>> unknown("objective", "sigmiod", ["sigmoid", "softmax"])
  "unknown objective 'sigmiod'; did you mean 'sigmoid'? (options: sigmoid, softmax)"
  """
  options = sorted(str(o) for o in options)
  near = nearest(name, options)
  line = f"unknown {kind} {name!r}"
  if near:
    line += f"; did you mean {' or '.join(repr(o) for o in near)}?"
  if not options:
    return f"{line}; there is none to choose from"
  shown = ", ".join(options[:_LISTED])
  if len(options) > _LISTED:
    shown += f", and {len(options) - _LISTED} more"
  return f"{line} (options: {shown})" if near else f"{line}; options: {shown}"


def lookup(kind: str, name: str, table: dict):
  """`table[name]`; raises ValueError with the nearest names when it is not there."""
  if name not in table:
    raise ValueError(unknown(kind, name, table))
  return table[name]
