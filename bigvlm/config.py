"""Configs: loading, checking, merging, saving, and the command line that changes them.

A config is what `get_config(arg=None)` of a config file returns: a `ConfigDict`
with the fields of `configs/common.py` and a tuple of stages. `load` and
`parse_argv` return checked configs, in which every field is present, has the type
of its default, and every dict within a tuple is a `ConfigDict` too; `plain` turns
any part of one into plain dicts and tuples.
"""

import importlib
import importlib.util
import json
import pathlib
import re
from typing import Any

from ml_collections import ConfigDict

from bigvlm import schema
from bigvlm.utils import names

_TRUE, _FALSE = ("true", "yes", "1"), ("false", "no", "0")

check = schema.check
complete = schema.complete
plain = schema.plain

# --- Config arguments and files.


def parse_arg(arg: str | None, **defaults: Any) -> ConfigDict:
  """Parses the argument of a config file, `"res=448,tiny,variant=b"`.

  Every config takes `tiny` (False when not given), whether it is named here or not.

  Args:
    arg: comma-separated `name=value`; a bare name is True. None or "" gives the defaults.
    **defaults: the names there are. A value gets the type of its default; where that is
      None it stays a string.

  Raises:
    ValueError: unknown name, or a value that is not of its type.
  """
  out = {"tiny": False, **defaults}
  for part in filter(None, (p.strip() for p in (arg or "").split(","))):
    name, has_value, value = (s.strip() for s in part.partition("="))
    if name not in out:
      raise ValueError(names.unknown("name in the config argument", name, out))
    default = {"tiny": False, **defaults}[name]
    if not has_value and not isinstance(default, bool):
      raise ValueError(f"config argument {name!r} wants a value: {name}=...")
    out[name] = _typed(value or "true", default, f"config argument {name!r}")
  return ConfigDict(out)


def _typed(text: str, default: Any, where: str) -> Any:
  if default is None or isinstance(default, str):
    return text
  if isinstance(default, bool):
    if text.lower() in _TRUE + _FALSE:
      return text.lower() in _TRUE
    raise ValueError(f"{where} wants true or false, got {text!r}")
  try:
    return type(default)(text)
  except ValueError:
    raise ValueError(f"{where} wants {schema.describe(default)}, got {text!r}") from None


def shipped() -> list[str]:
  """Names of the configs that come with bigvlm, as `load` takes them."""
  folder = _configs_folder()
  found = (p.relative_to(folder).with_suffix("") for p in folder.rglob("*.py"))
  return sorted(n.as_posix() for n in found if n.name != "common" and not n.name.startswith("_"))


def _configs_folder() -> pathlib.Path:
  return pathlib.Path(importlib.import_module("bigvlm.configs").__file__).resolve().parent


def _split(spec: str) -> tuple[str, str | None]:
  """("configs/x.py", "arg") from "configs/x.py:arg"."""
  head, found, arg = spec.partition(".py:")
  if found:
    return f"{head}.py", arg
  if spec.endswith(".py"):
    return spec, None
  head, _, arg = spec.partition(":")
  return head, arg or None


def load(name_or_path: str) -> ConfigDict:
  """Loads and checks a config: `path/to/file.py[:arg]`, or `name[:arg]` of a shipped one.

  Raises:
    FileNotFoundError: no such file.
    ValueError: no such name, a file without `get_config`, or whatever `check` refuses.
  """
  where, arg = _split(name_or_path)
  folder = _configs_folder()
  if where.endswith(".py"):
    path = pathlib.Path(where)
    if not path.is_file():
      raise FileNotFoundError(
        f"there is no config file {where}; configs that come with bigvlm go by name: "
        + ", ".join(shipped())
      )
    module = _import_file(path.resolve(), folder)
  else:
    if where not in shipped():
      raise ValueError(names.unknown("config", where, shipped()) + "; or give the path of a file")
    module = importlib.import_module("bigvlm.configs." + where.replace("/", "."))
  if not hasattr(module, "get_config"):
    raise ValueError(f"{where} has no function get_config(arg=None)")
  return check(module.get_config(arg) if arg else module.get_config())


def _import_file(path: pathlib.Path, folder: pathlib.Path):
  if path.is_relative_to(folder):  # One module object, whichever way it is named.
    inside = path.relative_to(folder).with_suffix("")
    return importlib.import_module(".".join(("bigvlm.configs", *inside.parts)))
  spec = importlib.util.spec_from_file_location(f"bigvlm_config_{path.stem}", path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


# --- Merging and saving.


def merge(base: ConfigDict | dict, over: ConfigDict | dict) -> ConfigDict:
  """`base` with the fields of `over` put over it, dict by dict; neither is changed.

  Anything that is not a dict in both (tuples too) is replaced as a whole.
  """

  def put(below, above):
    out = dict(below)
    for key, value in above.items():
      both = isinstance(value, dict) and isinstance(out.get(key), dict)
      out[key] = put(out[key], value) if both else value
    return out

  return schema.copy(put(plain(base), plain(over)))


def to_json(config: ConfigDict) -> str:
  """The config as indented JSON; `from_json` gives an equal config back.

  Raises:
    ValueError: a value that JSON does not have (an array, a function, NaN).
  """

  def fail(value):
    raise ValueError(f"a config holds plain values and names only, not {type(value).__name__}")

  return json.dumps(plain(config), indent=2, sort_keys=True, default=fail, allow_nan=False) + "\n"


def from_json(text: str) -> ConfigDict:
  """The inverse of `to_json`; lists become tuples."""
  return schema.copy(json.loads(text))


# --- The command line.


def locate(config: ConfigDict, path: str) -> str:
  """The canonical spelling of a path: `stages.NAME.lr`, `stages[-1].lr` to `stages[3].lr`.

  An element of a tuple is named by its index, or by its `name` if it has one.

  Raises:
    ValueError: a field, name or index that is not there, with what there is.
  """
  node, where, out = config, "config", ""
  tokens = re.findall(r"\[-?\d+\]|[^.\[\]]+", path)
  if not tokens or "".join(tokens) != path.replace(".", ""):
    raise ValueError(f"config.{path} is no path of a field")
  for token in tokens:
    if isinstance(node, ConfigDict):
      if token not in node:
        raise ValueError(f"{where}: {names.unknown('field', token, node)}")
      node, out = node[token], f"{out}.{token}" if out else token
    elif isinstance(node, tuple):
      i = _index(node, token, where)
      if not isinstance(node[i], ConfigDict):
        raise ValueError(f'{where} is set as a whole: --{where}="(...,)"')
      node, out = node[i], f"{out}[{i}]"
    else:
      raise ValueError(f"{where} is {schema.describe(node)} and has no field {token!r}")
    where = f"config.{out}"
  if isinstance(node, ConfigDict):
    raise ValueError(f"{where} is a dict; set its fields: {', '.join(sorted(node)) or 'none yet'}")
  return out


def _index(items: tuple, token: str, where: str) -> int:
  labels = [item.get("name", "") if isinstance(item, ConfigDict) else "" for item in items]
  number = re.fullmatch(r"\[?(-?\d+)\]?", token)
  if token in labels:
    return labels.index(token)
  if not number:
    kind = {"config.stages": "stage"}.get(where, f"element of {where}")
    raise ValueError(names.unknown(kind, token, filter(None, labels)))
  i = int(number.group(1))
  if not -len(items) <= i < len(items):
    there = ", ".join(f"[{k}] {label}".rstrip() for k, label in enumerate(labels))
    raise ValueError(f"{where} has no index {i}; there is {there or 'nothing in it'}")
  return i % len(items)


def rewrite_flags(argv: list[str], config: ConfigDict) -> list[str]:
  """Gives every `--config.PATH[=value]` its canonical path (see `locate`); the rest stays.

  `--config.stages.transfer.lr=1e-4` becomes `--config.stages[3].lr=1e-4`.
  """
  out = []
  for i, word in enumerate(argv):
    found = re.fullmatch(r"--?(no)?config\.([^=]+)(=.*)?", word, re.S)
    if "--" in argv[:i] or not found:
      out.append(word)
    else:
      out.append(f"--{found[1] or ''}config.{locate(config, found[2])}{found[3] or ''}")
  return out


def select_stages(spec: str | None, stage_names: tuple[str, ...]) -> tuple[int, ...]:
  """Which stages `--stages` means: `1:`, `:2`, `1:3`, `2`, `transfer`, `low:`, `0,2`; None = all.

  Bounds are indices or names; the end is not included, as in Python.

  Raises:
    ValueError: a name or an index that is not there; nothing selected.
  """
  every = tuple(range(len(stage_names)))
  if spec is None or spec.strip() in ("", ":"):
    return every
  items = tuple(ConfigDict({"name": name}) for name in stage_names)
  chosen = []
  for part in (p.strip() for p in spec.split(",")):
    first, colon, last = (s.strip() for s in part.partition(":"))
    if colon:
      begin = _index(items, first, "config.stages") if first else None
      at_end = last == str(len(items))
      end = None if not last or at_end else _index(items, last, "config.stages")
      chosen.extend(every[begin:end])
    else:
      chosen.append(_index(items, first, "config.stages"))
  if not chosen:
    raise ValueError(f"--stages={spec} selects no stage of {', '.join(stage_names)}")
  return tuple(sorted(set(chosen)))


def parse_argv(argv: list[str]) -> tuple[ConfigDict, str, tuple[int, ...] | None]:
  """Parses the words after `bigvlm train` or `python -m bigvlm.trainers.train`.

  `CONFIG[:arg]` or `--config=CONFIG[:arg]`, `--workdir=DIR` (default
  `workdir/<name of the config>[_<arg>]`), `--stages=1:`, and any number of
  `--config.PATH=value`, which ml_collections' config_flags parses by the type of the field.

  Returns:
    The checked config, the workdir, and the indices of the wanted stages or None (all).

  Raises:
    ValueError, FileNotFoundError: with one line that names what was wrong.
  """
  from absl import flags
  from ml_collections import config_flags

  spec, rest = _take_config(list(argv))
  config = load(spec)
  rest = rewrite_flags(rest, config)
  _register_parsers(flags, config_flags)
  values = flags.FlagValues()
  flags.DEFINE_string("workdir", None, "Where everything is written.", flag_values=values)
  flags.DEFINE_string("stages", None, "Which stages to run.", flag_values=values)
  words = ["bigvlm", *rest]
  try:
    config_flags.DEFINE_config_dict(
      "config", config, flag_values=values, lock_config=False, sys_argv=words
    )
    extra = values(words)[1:]
  except flags.UnrecognizedFlagError as e:
    raise ValueError(names.unknown("flag", f"--{e.flagname}", _FLAGS)) from None
  except flags.Error as e:
    raise ValueError(_flag_error(str(e), config)) from None
  if extra:
    raise ValueError(f"unexpected argument {extra[0]!r}; fields are set with --config.FIELD=VALUE")
  config = check(config)
  stages = None
  if values["stages"].value is not None:
    stages = select_stages(values["stages"].value, tuple(s.name for s in config.stages))
  return config, values["workdir"].value or _default_workdir(spec), stages


_FLAGS = ("--config", "--config.FIELD", "--workdir", "--stages")
_FLAGS += ("--coordinator", "--num_processes", "--process_id")  # Taken by the trainer before us.


def _take_config(argv: list[str]) -> tuple[str, list[str]]:
  for i, word in enumerate(argv):
    if word in ("--config", "-config"):
      if i + 1 == len(argv):
        raise ValueError("--config wants a value: --config=FILE[:arg]")
      return argv[i + 1], argv[:i] + argv[i + 2 :]
    if word.startswith(("--config=", "-config=")):
      return word.partition("=")[2], argv[:i] + argv[i + 1 :]
  if argv and not argv[0].startswith("-"):
    return argv[0], argv[1:]
  raise ValueError(f"which config? Give a file or one of: {', '.join(shipped())}")


def _register_parsers(flags, config_flags) -> None:
  """Parsers for two types that config_flags lacks or trips over."""
  from ml_collections.config_flags import tuple_parser

  class Tuple(tuple_parser.TupleParser):
    """A tuple written as in Python; a word that is no Python stands for ("word",)."""

    def parse(self, argument):
      try:
        return super().parse(argument)
      except (SyntaxError, ValueError):
        if argument.lstrip()[:1] in ("(", "["):
          raise ValueError("no tuple") from None
        return (argument,)

  class Anything(flags.ArgumentParser):
    """For a field that is None: a Python literal, else a string."""

    def parse(self, argument):
      parsed = Tuple().parse(argument) if isinstance(argument, str) else (argument,)
      return parsed[0] if len(parsed) == 1 else parsed

  config_flags.register_flag_parser_for_type(tuple, Tuple())
  config_flags.register_flag_parser_for_type(type(None), Anything())


def _flag_error(message: str, config: ConfigDict) -> str:
  found = re.match(r"flag --(?:no)?config\.([^=]+)=(.*?): ", message, re.S)
  if not found:
    return message
  node = config
  for key in re.findall(r"[^.\[\]]+", found[1]):
    node = node[int(key)] if isinstance(node, tuple) else node[key]
  return f"config.{found[1]} wants {schema.describe(node)}, got {found[2]!r}"


def _default_workdir(spec: str) -> str:
  where, arg = _split(spec)
  name = pathlib.PurePosixPath(where).stem
  suffix = re.sub(r"[^A-Za-z0-9.=\-]+", "_", arg or "")
  return f"workdir/{name}_{suffix}" if suffix else f"workdir/{name}"
