"""Reading `config.json` of transformers: both styles, defaults of omitted fields, sub-configs.

Version 5 writes `dtype` and `rope_parameters`; version 4 wrote `torch_dtype`, `rope_theta`,
`rope_scaling` and `rope_local_base_freq`. A field that is not there has the default of
transformers 5.23.0, which each family states.
"""

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import numpy as np

from bigvlm.utils import jsons, names

DTYPES = ("bfloat16", "float16", "float32")  # Of parameters and of the computation.
# transformers' names of activations -> `layers.mlp.ACTIVATIONS`.
ACTIVATIONS = {
  "gelu": "gelu",
  "gelu_pytorch_tanh": "gelu_tanh",
  "gelu_new": "gelu_tanh",
  "gelu_fast": "gelu_tanh",
  "gelu_python": "gelu",
  "gelu_python_tanh": "gelu_tanh",
  "gelu_accurate": "gelu_tanh",
  "quick_gelu": "quick_gelu",
  "silu": "silu",
  "swish": "silu",
  "relu": "relu",
  "relu2": "relu2",
}


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


def cast(value: Any) -> str | None:
  """The name of a dtype that a caller asked for; None if for none.

  Raises:
    ValueError: one that parameters cannot have.
  """
  try:
    name = None if value is None else str(np.dtype(value))
  except TypeError:
    name = str(value)
  if name is not None and name not in DTYPES:
    raise ValueError(names.unknown("dtype", name, DTYPES))
  return name


def size(value: int | list[int] | tuple[int, ...]) -> tuple[int, int]:
  """(height, width) of an `image_size` or `patch_size`, an int or a pair.

  Raises:
    ValueError: anything else.
  """
  pair = [value, value] if isinstance(value, int) else value
  if not isinstance(pair, (list, tuple)) or len(pair) != 2 or min(pair) < 1:
    raise ValueError(f"a size is a number of pixels or [height, width], not {value!r}")
  return int(pair[0]), int(pair[1])


def generation(model: Any) -> dict[str, Any] | None:
  """`generation_config.json` of a `HubModel`; None without one, or where it is not the model's."""
  path = None if model.directory is None else model.directory / "generation_config.json"
  counts = model.system.options.get("generation_config", True)
  return jsons.read(path) if counts and path is not None and path.is_file() else None


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
  """Token ids of a field that holds none, one or several.

  Raises:
    ValueError: something else.
  """
  if value is None:
    return ()
  found = tuple(value) if isinstance(value, (list, tuple)) else (value,)
  if not all(isinstance(n, int) for n in found):
    raise ValueError(f"token ids are one whole number or several, not {value!r}")
  return found
