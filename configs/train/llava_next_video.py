"""LLaVA-NeXT-Video (blog of 2024-04-30): LLaVA-NeXT with videos among its instructions, frames
pooled 2 x 2.

The values of the first two stages are those of LLaVA-NeXT, its own are not published. The
third, preference optimisation (DPO) of the whole model, is as in the authors' script, which has
another model of theirs: 17k pairs of LLaVA-Hound (arXiv 2404.01258), beta 0.1, three epochs at
5e-7, 16 steps of accumulation; that these are on eight devices, a batch of 128, is ours. Prompts:
"USER: <video>\\n{question} ASSISTANT:".
"""

from bigvlm.configs.train import _recipe as recipe
from bigvlm.configs.train import llava_next


def get_config(arg=None):
  """All three stages of the 7B model, with videos of up to 32 frames.

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
    stages=(
      *llava_next.stages("llava_next_760k", "videochatgpt_100k", weights=(760, 100)),
      recipe.SHARED
      | dict(
        name="prefer",
        data=recipe.pairs("llava_hound_dpo_17k"),
        train=recipe.ALL,
        lr=5e-7,
        batch_size=128,
        epochs=3.0,
        schedule=dict(kind="linear", warmup=0.1),
        objective=dict(kind="dpo", beta=0.1),
      ),
    ),
  )
