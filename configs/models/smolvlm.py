"""SmolVLM2 (arXiv 2504.05299): `smolvlm:2_2.2b`."""

from bigvlm.configs.models import _parts, idefics3

_IDS = {"256m": "256M-Video-Instruct", "500m": "500M-Video-Instruct", "2.2b": "2.2B-Instruct"}
SIZES = {
  f"2_{size}": (f"HuggingFaceTB/SmolVLM2-{_IDS[size]}", *slots)
  for size, slots in idefics3.SMOL.items()
}
_HUB = {"": dict(image_token_id=49_190)}


def get_config(arg=None):
  """Model and processor of a size; `arg` as of `_parts.system`."""
  return _parts.system("smolvlm", arg, SIZES, default="2_2.2b", tiny_res=48, hub=_HUB)
