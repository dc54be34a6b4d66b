"""LLaVA-NeXT-Video (blog of 2024-04-30): LLaVA-NeXT with videos among its instructions, frames
pooled 2 x 2.

The preference optimisation that ends in the DPO checkpoint is not here; the learning rates are
those of LLaVA-NeXT, its own are not published. Prompts: "USER: <video>\\n{question} ASSISTANT:".
"""

from bigvlm.configs.train import _recipe as recipe
from bigvlm.configs.train import llava_next


def get_config(arg=None):
  """Both stages of the 7B model, with videos of up to 32 frames.

  Args:
    arg: `source` (default llava-hf/LLaVA-NeXT-Video-7B-hf), `tiny`.
  """
  return recipe.make(
    arg,
    name="llava_next_video",
    source="llava-hf/LLaVA-NeXT-Video-7B-hf",
    toy="llava_next_video",
    text_len=8192,
    media_len=32,
    tiny=(160, 5),
    stages=llava_next.stages("llava_next_760k", "videochatgpt_100k"),
  )
