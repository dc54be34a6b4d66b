"""Reading JSON files of checkpoints."""

import json
import math
import pathlib
from typing import Any


def read(path: str | pathlib.Path) -> dict[str, Any]:
  """A JSON file that holds an object.

  Raises:
    ValueError: it is no JSON object, or a number in it is none (NaN, Infinity); names the file and
      the line or the field.
  """
  path = pathlib.Path(path)
  try:
    value = json.loads(path.read_text("utf-8"), object_pairs_hook=_object)
  except ValueError as e:
    raise ValueError(f"{path} is not JSON: {e}") from None
  if not isinstance(value, dict):
    raise ValueError(f"{path} holds a {type(value).__name__}, not an object")
  return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
  for key, value in pairs:
    for x in value if isinstance(value, list) else (value,):
      if isinstance(x, float) and not math.isfinite(x):
        raise ValueError(f"{key} is {value}")
  return dict(pairs)
