"""LLaVA-NeXT (LLaVA 1.6, blog of 2024-01-30): tiles, and the image tower trains too, at a tenth of
the learning rate.

The 760k instructions are those of LLaVA 1.5 without TextCaps, and ShareGPT-4V, LAION-GPT-4V, user
data, DocVQA, SynDog-EN, ChartQA, DVQA and AI2D. Prompts are those of each text model's chat.
"""

from bigvlm.configs.train import _recipe as recipe
from bigvlm.configs.train import llava


def get_config(arg=None):
  """Both stages of the 7B models.

  Args:
    arg: `source` (default llava-hf/llava-v1.6-mistral-7b-hf), `tiny`.
  """
  return recipe.make(
    arg,
    name="llava_next",
    source="llava-hf/llava-v1.6-mistral-7b-hf",
    toy="llava_next",
    text_len=4096,
    media_len=5,
    tiny=(160, 5),
    stages=stages("llava_next_760k"),
  )


def stages(*instructions, weights=()):
  """Both stages; mixture of the second."""
  align, instruct = llava.stages("llava_pretrain_558k", "llava_next_760k")
  whole = dict(data=recipe.data(*instructions, weights=weights), train=recipe.ALL)
  return align, instruct | whole | dict(lr_mults=(("encoders/.*", 0.1),))
