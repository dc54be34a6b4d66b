"""BLIP-2 (arXiv 2301.12597): `blip2:opt_2.7b`, `blip2:flan_t5_xl`, `blip2:itm_vit_g`."""

from bigvlm.configs.models import _parts, _texts

_DECODERS = {f"opt_{size}": _texts.OPT[size] | dict(vocab=50_304) for size in ("2.7b", "6.7b")}
_DECODERS |= {f"flan_t5_{size}": decoder for size, decoder in _texts.FLAN_T5.items()}
SIZES = {
  size: (
    f"Salesforce/blip2-{size.replace('_', '-')}",
    _parts.vlm(_parts.EVA_G, dict(kind="qformer"), decoder),
  )
  for size, decoder in _DECODERS.items()
}
_MATCHING = dict(
  kind="matching",
  encoders=dict(image=_parts.EVA_G),
  connector=dict(kind="qformer", vocab=30_523),
  out_dim=256,
)
SIZES["itm_vit_g"] = ("Salesforce/blip2-itm-vit-g", _MATCHING)
_T5 = dict(text_config=dict(model_type="t5"), image_token_index=32_100)
_HUB = {
  size: dict(model_type="blip-2") | (_T5 if "t5" in size else dict(image_token_index=50_265))
  for size in _DECODERS
}


def get_config(arg=None):
  """Model and processor of a size; `arg` as of `_parts.system`."""
  return _parts.system("blip2", arg, SIZES, default="opt_2.7b", res=224, hub=_HUB)
