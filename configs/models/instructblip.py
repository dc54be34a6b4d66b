"""InstructBLIP (arXiv 2305.06500): a Q-Former that reads the prompt, `instructblip:vicuna_7b`."""

from bigvlm.configs.models import _parts, _texts

# Vicuna 1.1, of the first Llama; its table has rows for the placeholders, too.
_DECODERS = {
  f"vicuna_{size}": _texts.LLAMA[f"1_{size}"] | dict(vocab=32_064) for size in ("7b", "13b")
}
_DECODERS |= {f"flan_t5_{size}": decoder for size, decoder in _texts.FLAN_T5.items()}
SIZES = {
  size: (
    f"Salesforce/instructblip-{size.replace('_', '-')}",
    _parts.vlm(_parts.EVA_G, dict(kind="qformer", vocab=30_523), decoder),
  )
  for size, decoder in _DECODERS.items()
}


def hub(token):
  """`hub` of the sizes; `token` is the field of the placeholders' id."""
  t5 = {token: 32_100, "text_config": dict(model_type="t5")}
  return {size: t5 if "t5" in size else {token: 32_001} for size in SIZES}


def get_config(arg=None):
  """Model and processor of a size; `arg` as of `_parts.system`."""
  return _parts.system(
    "instructblip", arg, SIZES, default="vicuna_7b", res=224, hub=hub("image_token_index")
  )
