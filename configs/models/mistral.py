"""Mistral as a text model (arXiv 2310.06825): `mistral:7b_v0.1`."""

from bigvlm.configs.models import _parts, _texts

_IDS = {
  "7b_v0.1": "Mistral-7B-v0.1",
  "7b_v0.2": "Mistral-7B-Instruct-v0.2",
  "7b_v0.3": "Mistral-7B-v0.3",
  "nemo_12b": "Mistral-Nemo-Base-2407",
  "small_24b": "Mistral-Small-24B-Base-2501",
}
SIZES = {s: (f"mistralai/{_IDS[s]}", _parts.lm(d)) for s, d in _texts.MISTRAL.items()}


def get_config(arg=None):
  """Model and processor of a size; `arg` as of `_parts.system`."""
  return _parts.system("mistral", arg, SIZES, default="7b_v0.1")
