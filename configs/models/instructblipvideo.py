"""InstructBLIP on four frames (arXiv 2305.06500): `instructblipvideo:vicuna_7b`."""

from bigvlm.configs.models import _parts, instructblip

SIZES = instructblip.SIZES
_HUB = instructblip.hub("video_token_index")


def get_config(arg=None):
  """Model and processor of a size; `arg` as of `_parts.system`."""
  return _parts.system("instructblipvideo", arg, SIZES, default="vicuna_7b", res=224, hub=_HUB)
