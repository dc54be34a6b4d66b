"""IDEFICS (arXiv 2306.16527), an open Flamingo (2204.14198): `idefics:9b`."""

from bigvlm.configs.models import _parts, _texts

_IMAGE = dict(
  kind="vit",
  width=1280,
  depth=32,
  hidden=5120,
  heads=16,
  patch=14,
  act="gelu",
  eps=1e-5,
  patch_bias=False,
  resample="bicubic_tenth",
  cls=True,
  cls_posemb=True,
  keep_cls=True,
  pre_norm=True,
  final_norm="none",
  **_parts.OPENAI,
)
_LATENTS = dict(latents=64, depth=6, heads=16, kv_heads=16, head_dim=96, hidden=5120)
_CONNECTOR = dict(kind="resampler", qk_norm=True, **_LATENTS)


def _model(width, hidden, depth, heads):
  # A layer of cross-attention before every fourth of the text model's own.
  total = depth + depth // 4
  cross = dict(width=1280, qk_norm=True, blind="zero", gate=1)
  more = dict(vocab=32_002, extra_vocab=2, cross=cross, cross_layers=tuple(range(0, total, 5)))
  decoder = _texts.decoder(width, hidden, total, heads, **more)
  return _parts.vlm(_IMAGE, _CONNECTOR, decoder, fusion=dict(kind="memory"))


SIZES = {
  "9b": ("HuggingFaceM4/idefics-9b", _model(4096, 11_008, 32, 32)),
  "80b": ("HuggingFaceM4/idefics-80b", _model(8192, 22_016, 80, 64)),
}


def get_config(arg=None):
  """Model and processor of a size; `arg` as of `_parts.system`."""
  return _parts.system("idefics", arg, SIZES, default="9b", res=224)
