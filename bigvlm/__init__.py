"""bigvlm: vision-language models in JAX, from pre-training to transfer."""

import pathlib

__version__ = "0.1.0"

_root = pathlib.Path(__file__).resolve().parent.parent
if (_root / "setup.py").is_file():  # A source checkout: trainers/, data/, ... lie beside us.
  __path__.append(str(_root))
