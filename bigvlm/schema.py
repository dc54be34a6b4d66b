"""What a config may say: names and types of its fields, against `configs/common.py`."""

import importlib
import re
from typing import Any

from ml_collections import ConfigDict

from bigvlm.utils import names

_STAGE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_\-]*")
# Dicts whose fields depend on their `kind`: whoever builds that kind checks them.
_BY_KIND = ("optimizer", "objective")


def check(config: ConfigDict) -> ConfigDict:
  """Checks names and types of all fields against `configs/common.py`, stages included.

  Parts that are built by a table (`model`, `processor`, sources, objectives, ...) are
  checked by their builders.

  Returns:
    A copy of `config` that shares nothing with it, in which an int where a float belongs
    is one, a list is a tuple, and a dict within a tuple is a ConfigDict.

  Raises:
    ValueError: a field that does not exist (with the nearest names), that is missing, or
      of another type; stages without names of their own.
  """
  common = importlib.import_module("bigvlm.configs.common")
  if not isinstance(config, ConfigDict):
    raise ValueError(f"get_config returned {describe(config)}, not a ConfigDict")
  # A copy without sharing: two stages that were given one tuple of evaluators get one each, so
  # that changing a field of the first leaves the second alone.
  config = copy(config)
  base, stage = common.base(), common.stage()
  _fields(config, base, "config")
  seen = {}
  for i, s in enumerate(config.stages):
    where = f"config.stages[{i}]"
    if not isinstance(s, ConfigDict):
      raise ValueError(f"{where} is {describe(s)}, not a stage; make it with common.stage(...)")
    _fields(s, stage, where)
    _names(s.mesh, base.mesh, f"{where}.mesh")
    if not _STAGE_NAME.fullmatch(s.name):
      raise ValueError(f"{where}.name: {s.name!r} must be letters, digits, '_' and '-'")
    if s.name in seen:
      raise ValueError(f"{where}.name: {s.name!r} is the name of stages[{seen[s.name]}] already")
    seen[s.name] = i
    for k, source in enumerate(s.data.sources):
      _record(source, f"{where}.data.sources[{k}]", ("kind",))
    for k, evaluator in enumerate(s.evals):
      _record(evaluator, f"{where}.evals[{k}]", ("name", "kind"))
  return config


def complete(config: ConfigDict) -> ConfigDict:
  """A config that an earlier version wrote, with the defaults of fields that came later."""
  common = importlib.import_module("bigvlm.configs.common")
  stages = tuple(common.stage(**stage) for stage in config.stages)
  return common.base(**{**config, "stages": stages})


def _names(given: ConfigDict, defaults: ConfigDict, where: str) -> None:
  for key in given:
    if key not in defaults:
      raise ValueError(f"{where}: {names.unknown('field', key, defaults)}")


def _fields(given: ConfigDict, defaults: ConfigDict, where: str) -> None:
  _names(given, defaults, where)
  for key, default in defaults.items():
    here = f"{where}.{key}"
    if key not in given:
      raise ValueError(f"{where} lacks the field {key!r}; make it with common.base or common.stage")
    with given.ignore_type():
      given[key] = _convert(given[key], default, here)
    if not isinstance(default, ConfigDict) or not len(default):
      continue
    if key in _BY_KIND:
      _record(given[key], here, ("kind",))
    else:
      _fields(given[key], default, here)


def _record(item: Any, where: str, required: tuple[str, ...]) -> None:
  if not isinstance(item, ConfigDict):
    raise ValueError(f"{where} is {describe(item)}, not a dict")
  for key in required:
    if not isinstance(item.get(key), str):
      raise ValueError(f"{where} needs a field {key!r} (a string)")


def _convert(value: Any, default: Any, where: str) -> Any:
  """`value` as the type of `default`; raises where that would change its meaning."""
  if isinstance(default, float) and isinstance(value, int) and not isinstance(value, bool):
    return float(value)
  fits = isinstance(value, type(default))
  if isinstance(value, bool) and not isinstance(default, bool):
    fits = False
  if not fits and default is not None:
    raise ValueError(f"{where} wants {describe(default)}, got {describe(value)}: {value!r}")
  if isinstance(default, tuple) and default and isinstance(default[0], str):
    for item in value:
      if not isinstance(item, str):
        raise ValueError(f"{where} wants strings, got {describe(item)}: {item!r}")
  return value


def plain(value: Any) -> Any:
  """ConfigDicts to dicts and lists to tuples, all the way down; a copy."""
  if isinstance(value, (dict, ConfigDict)):
    return {key: plain(item) for key, item in value.items()}
  if isinstance(value, (list, tuple)):
    return tuple(plain(item) for item in value)
  return value


def copy(value: Any) -> Any:
  """The inverse of `plain`: dicts to ConfigDicts, those within tuples too, sharing nothing.

  (A ConfigDict makes ConfigDicts of the dicts it holds, but not of those in its tuples.)
  """
  if isinstance(value, (dict, ConfigDict)):
    return ConfigDict({key: copy(item) for key, item in value.items()})
  if isinstance(value, (list, tuple)):
    return tuple(copy(item) for item in value)
  return value


def describe(value: Any) -> str:
  """The type of `value` in words, for messages."""
  kinds = {bool: "true or false", int: "an int", float: "a float", str: "a string"}
  kinds.update({tuple: "a tuple", ConfigDict: "a dict", dict: "a dict", type(None): "None"})
  return kinds.get(type(value), type(value).__name__)
