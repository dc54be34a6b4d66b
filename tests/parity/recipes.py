"""All recipes by name."""

import importlib

_FILES = ("encoders", "decoders", "encdec")

RECIPES = {}
for _file in _FILES:
  RECIPES |= importlib.import_module(f"tests.parity.recipes_{_file}").RECIPES
