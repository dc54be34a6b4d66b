"""Pixtral 12B (arXiv 2410.07073): packed patches with two rotary axes, `pixtral:12b`."""

from bigvlm.configs.models import _parts, _texts

_DECODER = _texts.MISTRAL["nemo_12b"] | dict(rope_base=1e9)
_MODEL = _parts.vlm(_parts.PIXTRAL, dict(kind="merger"), _DECODER)
SIZES = {"12b": ("mistral-community/pixtral-12b", _MODEL)}
_HUB = {
  "": dict(
    model_type="llava",
    vision_config=dict(model_type="pixtral"),
    text_config=dict(model_type="mistral"),
    vision_feature_select_strategy="full",
    image_token_index=10,
  )
}


def get_config(arg=None):
  """Model and processor of a size; `arg` as of `_parts.system`."""
  return _parts.system("pixtral", arg, SIZES, default="12b", res=1024, hub=_HUB)
