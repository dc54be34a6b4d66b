"""Mistral Small 3.1 with vision (mistral.ai, 2025): `mistral3:small_3.1_24b`."""

from bigvlm.configs.models import _parts, _texts

_CONNECTOR = dict(kind="merger", merge=2, norm="rms_plain", eps=1e-5, mix=1024, bias=False)
_DECODER = _texts.MISTRAL["small_24b"] | dict(rope_base=1e9)
_MODEL = _parts.vlm(_parts.PIXTRAL | dict(block=2), _CONNECTOR, _DECODER)
SIZES = {"small_3.1_24b": ("mistralai/Mistral-Small-3.1-24B-Instruct-2503", _MODEL)}
_HUB = {"": dict(image_token_index=10)}


def get_config(arg=None):
  """Model and processor of a size; `arg` as of `_parts.system`."""
  return _parts.system("mistral3", arg, SIZES, default="small_3.1_24b", res=1540, hub=_HUB)
