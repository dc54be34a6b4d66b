"""InternVL 2.5 (arXiv 2412.05271): tiles, pixels shuffled 2 x 2, `internvl:2.5_8b`."""

from bigvlm.configs.models import _parts, _texts

_300M = dict(
  kind="vit",
  width=1024,
  depth=24,
  hidden=4096,
  heads=16,
  patch=14,
  resample="bicubic",
  cls=True,
  cls_posemb=True,
  last_norm="layer",
  final_norm="none",
  act="gelu",
  out_bias=True,
  mlp_bias=True,
  layer_scale=0.1,
  qk_eps=1e-6,
  **_parts.IMAGENET,
)
_6B = dict(width=3200, depth=45, hidden=12_800, heads=25)
_6B = _300M | _6B | dict(norm="rms_plain", bias=False, qk_joint="rms_plain")
_LONG = dict(rotary=dict(kind="dynamic", factor=2.0, length=32_768))
_INTERNLM = dict(vocab=92_553, rope_base=1e6, eps=1e-5, **_LONG)
_QWEN = dict(vocab=151_674, tied=False)
_PARTS = {
  "1b": (_300M, _texts.QWEN2["0.5b"] | _QWEN),
  "2b": (_300M, _texts.decoder(2048, 8192, 24, 16, 8, **_INTERNLM)),
  "4b": (_300M, _texts.QWEN2["2.5_3b"] | _QWEN),
  "8b": (_300M, _texts.decoder(4096, 14_336, 32, 32, 8, **_INTERNLM)),
  "26b": (_6B, _texts.decoder(6144, 16_384, 48, 48, 8, **_INTERNLM)),
  "38b": (_6B, _texts.QWEN2["2.5_32b"] | _QWEN),
  "78b": (_6B, _texts.QWEN2["2.5_72b"] | _QWEN),
}
_CONNECTOR = dict(kind="pixel_shuffle", factor=2, norm="layer", act="gelu")
SIZES = {
  f"2.5_{size}": (
    f"OpenGVLab/InternVL2_5-{size.upper()}-MPO-hf",
    _parts.vlm(image, _CONNECTOR, decoder),
  )
  for size, (image, decoder) in _PARTS.items()
}
_HUB = {
  f"2.5_{size}": dict(image_token_id=92_546 if decoder["vocab"] == 92_553 else 151_667)
  for size, (_, decoder) in _PARTS.items()
}


def get_config(arg=None):
  """Model and processor of a size; `arg` as of `_parts.system`."""
  return _parts.system("internvl", arg, SIZES, default="2.5_8b", res=448, hub=_HUB)
