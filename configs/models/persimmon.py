"""Persimmon-8B as a text model (adept.ai, 2023): `persimmon:8b`."""

from bigvlm.configs.models import _parts, _texts

SIZES = {"8b": ("adept/persimmon-8b-base", _parts.lm(_texts.PERSIMMON["8b"]))}


def get_config(arg=None):
  """Model and processor of a size; `arg` as of `_parts.system`."""
  return _parts.system("persimmon", arg, SIZES, default="8b")
