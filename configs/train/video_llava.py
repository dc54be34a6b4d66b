"""Video-LLaVA (arXiv 2311.10122): the connector on captions of images and videos, then with the
text model on instructions about both; LanguageBind's towers stay frozen. Videos have 8 frames.

Prompts: "USER: <video>\\n{question} ASSISTANT:", or <image>, with Vicuna's system line.
"""

from bigvlm.configs.train import _recipe as recipe
from bigvlm.configs.train import llava


def get_config(arg=None):
  """Both stages of the 7B model.

  Args:
    arg: `source` (default LanguageBind/Video-LLaVA-7B-hf), `tiny`.
  """
  align, instruct = llava.stages("", "")
  return recipe.make(
    arg,
    name="video_llava",
    source="LanguageBind/Video-LLaVA-7B-hf",
    toy="video_llava",
    text_len=4096,
    media_len=8,
    stages=(
      align | dict(data=recipe.data("llava_pretrain_558k", "valley_702k", weights=(558, 702))),
      instruct
      | dict(data=recipe.data("llava_instruct_665k", "videochatgpt_100k", weights=(665, 100))),
    ),
  )
