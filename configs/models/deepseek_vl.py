"""DeepSeek-VL (arXiv 2403.05525): `deepseek_vl:1.3b` with SigLIP, `deepseek_vl:7b` with SAM too."""

from bigvlm.configs.models import _parts, _texts

_SAM = dict(kind="sam", width=768, depth=12, hidden=3072, heads=12, patch=16, table=(64, 64), tap=3)
_VOCAB = dict(vocab=102_400)
_SMALL = _parts.vlm(
  _parts.SIGLIP_L_16, dict(kind="mlp"), _texts.decoder(2048, 5632, 24, 16, **_VOCAB)
)
_LARGE = _parts.vlm(
  dict(image=_parts.SIGLIP_L_16, fine=_SAM),
  dict(kind="hybrid"),
  _texts.decoder(4096, 11_008, 30, 32, **_VOCAB),
)
SIZES = {
  "1.3b": ("deepseek-community/deepseek-vl-1.3b-chat", _SMALL),
  "7b": ("deepseek-community/deepseek-vl-7b-chat", _LARGE),
}


def get_config(arg=None):
  """Model and processor of a size; `arg` as of `_parts.system`."""
  return _parts.system("deepseek_vl", arg, SIZES, default="1.3b", res=384)
