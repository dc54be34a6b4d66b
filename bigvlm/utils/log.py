"""Lines for people, on stderr; stdout is kept for results that programs read."""

import os
import sys
from collections.abc import Callable

_above: Callable[[str], None] | None = None


def line(text: str) -> None:
  """Writes one line in one call, so that lines of several threads do not mix."""
  if _above is not None:
    _above(text.rstrip("\n"))
    return
  sys.stderr.write(text.rstrip("\n") + "\n")
  sys.stderr.flush()


def above(write: Callable[[str], None] | None) -> None:
  """Hands every line to `write`, which puts it above what is drawn below; None = no more."""
  global _above
  _above = write


def warn(text: str) -> None:
  """A warning: something is not as it should be, and the run goes on."""
  line(f"bigvlm: warning: {one_line(text)}")


def error(text: str) -> None:
  """An error that ends the command."""
  line(f"bigvlm: error: {one_line(text)}")


def one_line(text: str) -> str:
  """Joins the lines of a message."""
  return " ".join(part.strip() for part in str(text).splitlines() if part.strip())


def debug() -> bool:
  """Whether the user asked for tracebacks of expected errors (BIGVLM_DEBUG=1)."""
  return os.environ.get("BIGVLM_DEBUG", "") not in ("", "0")
