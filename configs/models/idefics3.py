"""Idefics3 (arXiv 2408.12637): `idefics3:8b_llama3`; SmolVLM (2504.05299): `:smolvlm_2.2b`."""

from bigvlm.configs.models import _parts, _texts


def shuffled(image, pixels, factor, decoder):
  """Slots of a system whose patches come together `factor` x `factor`, and its image size."""
  side = pixels // image["patch"]
  image = image | dict(kind="padded", table=(side, side))
  connector = dict(kind="pixel_shuffle", factor=factor, bias=False)
  return _parts.vlm(image, connector, decoder), pixels


_SMOL = dict(vocab=49_280, eps=1e-5, rope_base=1e5)
_SMALL = _texts.decoder(576, 1536, 30, 9, 3, **_SMOL)
_MIDDLE = _texts.decoder(960, 2560, 32, 15, 5, **_SMOL)
_LARGE = _texts.decoder(2048, 8192, 24, 32, **_SMOL | dict(rope_base=273_768.0))
SMOL = {
  "256m": shuffled(_parts.SIGLIP_B_16, 512, 4, _SMALL),
  "500m": shuffled(_parts.SIGLIP_B_16, 512, 4, _MIDDLE),
  "2.2b": shuffled(_parts.SO400M, 384, 3, _LARGE),
}
_LLAMA = _texts.LLAMA["3.1_8b"] | dict(vocab=128_259)
_FIRST = shuffled(_parts.SO400M, 384, 3, _LARGE | dict(vocab=49_155))
SIZES = {
  "8b_llama3": ("HuggingFaceM4/Idefics3-8B-Llama3", *shuffled(_parts.SO400M, 364, 2, _LLAMA)),
  "smolvlm_256m": ("HuggingFaceTB/SmolVLM-256M-Instruct", *SMOL["256m"]),
  "smolvlm_500m": ("HuggingFaceTB/SmolVLM-500M-Instruct", *SMOL["500m"]),
  "smolvlm_2.2b": ("HuggingFaceTB/SmolVLM-Instruct", *_FIRST),
}
_HUB = {s: dict(image_token_id=49_190) for s in ("smolvlm_256m", "smolvlm_500m")}
_HUB |= {"smolvlm_2.2b": dict(image_token_id=49_153)}


def get_config(arg=None):
  """Model and processor of a size; `arg` as of `_parts.system`."""
  return _parts.system("idefics3", arg, SIZES, default="8b_llama3", tiny_res=48, hub=_HUB)
