"""Llama 1 to 3.2 as text models (arXiv 2302.13971, 2307.09288, 2407.21783): `llama:3.1_8b`."""

from bigvlm.configs.models import _parts, _texts

_IDS = {
  "1": "huggyllama/llama-{}",
  "2": "meta-llama/Llama-2-{}-hf",
  "3": "meta-llama/Meta-Llama-3-{}",
  "3.1": "meta-llama/Llama-3.1-{}",
  "3.2": "meta-llama/Llama-3.2-{}",
}


def _hub_id(size):
  version, _, count = size.partition("_")
  return _IDS[version].format(count.upper() if version[0] == "3" else count)


SIZES = {size: (_hub_id(size), _parts.lm(d)) for size, d in _texts.LLAMA.items()}


def get_config(arg=None):
  """Model and processor of a size; `arg` as of `_parts.system`."""
  return _parts.system("llama", arg, SIZES, default="3.1_8b")
