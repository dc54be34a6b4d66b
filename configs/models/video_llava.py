"""Video-LLaVA (arXiv 2311.10122): an encoder each for pictures and frames, `video_llava:7b`."""

from bigvlm.configs.models import _parts, _texts

_MODEL = _parts.vlm(
  dict(image=_parts.CLIP_L, video=_parts.CLIP_L | dict(keep_cls=True)),
  dict(kind="mlp", video="video", video_front=1),
  _texts.VICUNA["7b"],
)
SIZES = {"7b": ("LanguageBind/Video-LLaVA-7B-hf", _MODEL)}


def get_config(arg=None):
  """Model and processor of a size; `arg` as of `_parts.system`."""
  return _parts.system("video_llava", arg, SIZES, default="7b", res=224)
