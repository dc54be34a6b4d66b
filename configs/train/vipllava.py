"""ViP-LLaVA (arXiv 2312.00784): LLaVA 1.5 on features of several layers, with marks drawn into the
images of its instructions.

A third stage goes on with instructions by GPT-4V at 2e-7 (the authors' finetune_stage3.sh).
Prompts: "###Human: <image>\\n{question}###Assistant:".
"""

from bigvlm.configs.train import _recipe as recipe
from bigvlm.configs.train import llava


def get_config(arg=None):
  """All three stages of the 7B model.

  Args:
    arg: `source` (default llava-hf/vip-llava-7b-hf), `tiny`.
  """
  align, instruct = llava.stages("llava_pretrain_558k", "vip_llava_instruct")
  return recipe.make(
    arg,
    name="vipllava",
    source="llava-hf/vip-llava-7b-hf",
    toy="vipllava",
    stages=(
      align,
      instruct,
      instruct | dict(name="gpt4v", data=recipe.data("vip_llava_gpt4v"), lr=2e-7),
    ),
  )
