"""BakLLaVA: the stages of LLaVA 1.5 on Mistral 7B.

Of its instructions 158k by GPT-4, 450k of academic VQA and 40k of ShareGPT are known, the rest is
not published. Prompts: "USER: <image>\\n{question}\\nASSISTANT:".
"""

from bigvlm.configs.train import _recipe as recipe
from bigvlm.configs.train import llava


def get_config(arg=None):
  """Both stages.

  Args:
    arg: `source` (default llava-hf/bakLlava-v1-hf), `tiny`.
  """
  return recipe.make(
    arg,
    name="bakllava",
    source="llava-hf/bakLlava-v1-hf",
    toy="llava",
    stages=llava.stages("llava_pretrain_558k", "bakllava_instruct"),
  )
