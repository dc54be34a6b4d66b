"""Reading `config.json` of transformers: both styles, defaults of omitted fields, sub-configs.

Version 5 writes `dtype` and `rope_parameters`; version 4 wrote `torch_dtype`, `rope_theta`,
`rope_scaling` and `rope_local_base_freq`. A field that is not there has the default of
transformers 5.23.0, which each family states.
"""

import json
import pathlib
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

from bigvlm.utils import names

# transformers' names of activations -> `layers.mlp.ACTIVATIONS`.
ACTIVATIONS = {
  "gelu": "gelu",
  "gelu_pytorch_tanh": "gelu_tanh",
  "gelu_new": "gelu_tanh",
  "gelu_fast": "gelu_tanh",
  "quick_gelu": "quick_gelu",
  "silu": "silu",
  "swish": "silu",
  "relu": "relu",
  "relu2": "relu2",
}


def read_json(path: str | pathlib.Path) -> dict[str, Any]:
  """A JSON file that holds an object.

  Raises:
    ValueError: it is no JSON object; names the file and the line.
  """
  path = pathlib.Path(path)
  try:
    value = json.loads(path.read_text("utf-8"))
  except (json.JSONDecodeError, UnicodeDecodeError) as e:
    raise ValueError(f"{path} is not JSON: {e}") from None
  if not isinstance(value, dict):
    raise ValueError(f"{path} holds a {type(value).__name__}, not an object")
  return value


def fields(cfg: Mapping[str, Any], **defaults: Any) -> SimpleNamespace:
  """The named fields of a config; one that is absent has its default."""
  return SimpleNamespace(**{key: cfg.get(key, value) for key, value in defaults.items()})


def sub(cfg: Mapping[str, Any], name: str) -> dict[str, Any]:
  """A sub-config; empty when it is not there, so that every field has its default."""
  found = cfg.get(name)
  return {} if found is None else found.copy()


def activation(name: str) -> str:
  """Our name of an activation.

  Raises:
    ValueError: one we do not have.
  """
  return names.lookup("activation in config.json", name, ACTIVATIONS)


def dtype(cfg: Mapping[str, Any]) -> str | None:
  """The dtype a config names, in either style, e.g. "bfloat16"; None if it names none."""
  found = cfg.get("dtype") or cfg.get("torch_dtype")
  return None if found is None else str(found).removeprefix("torch.")


def size(value: int | list[int] | tuple[int, ...]) -> tuple[int, int]:
  """(height, width) of an `image_size` or `patch_size`, an int or a pair."""
  if isinstance(value, int):
    return value, value
  height, width = value
  return int(height), int(width)


def generation(model: Any) -> dict[str, Any]:
  """`generation_config.json` of a `HubModel`; empty without one, or where it is not the model's."""
  path = None if model.directory is None else model.directory / "generation_config.json"
  counts = model.system.options.get("generation_config", True)
  return read_json(path) if counts and path is not None and path.is_file() else {}


def with_size(cfg: Mapping[str, Any], size: tuple[int, int], patch: int) -> dict[str, Any]:
  """A `config.json` for another image size (height, width) in pixels."""
  value: Any = size[0] if size[0] == size[1] else list(size)
  tokens = (size[0] // patch) * (size[1] // patch)
  out = dict(cfg)
  holder = "vision_config" if "vision_config" in cfg else None
  vision = dict(cfg[holder]) if holder else out
  vision["image_size"] = value
  for part in (vision, out):
    if "num_image_tokens" in part:
      part["num_image_tokens"] = tokens
  if holder:
    out[holder] = vision
  if isinstance(out.get("text_config"), dict) and "num_image_tokens" in out["text_config"]:
    out["text_config"] = out["text_config"] | {"num_image_tokens": tokens}
  return out


def patch(cfg: Mapping[str, Any], default: int) -> int:
  """`patch_size` of a vision config, a number or a pair; the images have three channels.

  Raises:
    ValueError: patches that are not square, or another number of channels.
  """
  height, width = size(cfg.get("patch_size", default))
  if height != width:
    raise ValueError(f"config.json: patch_size {height}x{width} is not square; only such are read")
  if cfg.get("num_channels", 3) != 3:
    raise ValueError(f"config.json: num_channels is {cfg['num_channels']}; only 3 are read")
  return height


def labels(cfg: Mapping[str, Any]) -> int:
  """Number of classes of a classifier: that of `id2label`, else `num_labels`, else 2."""
  named = cfg.get("id2label")
  return cfg.get("num_labels", 2) if named is None else len(named)


def ends(cfg: Mapping[str, Any], eos: Any = None, pad: int | None = None) -> dict[str, Any]:
  """Options of generation: `eos` and `pad` of a config, else those given."""
  found = fields(cfg, eos_token_id=eos, pad_token_id=pad)
  return dict(eos=ids(found.eos_token_id), pad=found.pad_token_id)


def ids(value: int | list[int] | None) -> tuple[int, ...]:
  """Token ids of a field that holds none, one or several."""
  if value is None:
    return ()
  return tuple(value) if isinstance(value, (list, tuple)) else (value,)
