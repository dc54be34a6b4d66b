"""Llama 3.2-Vision (arXiv 2407.21783): tiles, cross-attention, `mllama:11b`."""

from bigvlm.configs.models import _parts, _texts

_IMAGE = dict(
  kind="tiled",
  width=1280,
  depth=32,
  hidden=5120,
  heads=16,
  patch=14,
  patch_bias=False,
  act="gelu",
  eps=1e-5,
  bias=False,
  mlp_bias=True,
  keep=(3, 7, 15, 23, 30),
  **_parts.OPENAI,
)


def _model(text, depth):
  decoder = _texts.LLAMA[text] | dict(
    vocab=128_264,
    out_vocab=128_256,
    depth=depth,
    cross_layers=tuple(range(3, depth, 5)),
    cross=dict(qk_norm=True, blind="all", blind_mlp=False),
  )
  return _parts.vlm(_IMAGE, dict(kind="linear"), decoder, fusion=dict(kind="memory"))


SIZES = {
  "11b": ("meta-llama/Llama-3.2-11B-Vision-Instruct", _model("3.1_8b", 40)),
  "90b": ("meta-llama/Llama-3.2-90B-Vision-Instruct", _model("3.1_70b", 100)),
}


def get_config(arg=None):
  """Model and processor of a size; `arg` as of `_parts.system`."""
  return _parts.system("mllama", arg, SIZES, default="11b", res=560)
