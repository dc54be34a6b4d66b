"""bigvlm: vision-language models in JAX, from pre-training to transfer."""

import pathlib

__version__ = "0.1.0"

_root = pathlib.Path(__file__).resolve().parent.parent
if (_root / "setup.py").is_file():  # A source checkout: trainers/, data/, ... lie beside us.
  __path__.append(str(_root))


def __getattr__(name: str):
  """`bigvlm.load` (see `bigvlm.hub.load`), imported when it is asked for: it needs jax."""
  if name == "load":
    from bigvlm.hub.load import load

    return load
  raise AttributeError(f"module 'bigvlm' has no attribute {name!r}")
