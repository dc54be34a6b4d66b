"""All recipes by name."""

import importlib

_FILES = ("encoders", "decoders", "encdec", "d", "n", "p1", "p2", "q", "t", "x")

RECIPES = {}
for _file in _FILES:
  RECIPES |= importlib.import_module(f"tests.parity.recipes_{_file}").RECIPES
