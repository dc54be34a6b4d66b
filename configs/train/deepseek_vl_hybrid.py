"""DeepSeek-VL 7B: SigLIP and SAM together; the stages of the small model with a second one of its
own (arXiv 2403.05525, table 4), and SAM stays frozen.
"""

from bigvlm.configs.train import deepseek_vl


def get_config(arg=None):
  """All three stages.

  Args:
    arg: `source` (default deepseek-community/deepseek-vl-7b-chat), `tiny`.
  """
  source = "deepseek-community/deepseek-vl-7b-chat"
  joint = (4.2e-5, 2304, 42_000)
  return deepseek_vl.make(arg, "deepseek_vl_hybrid", source, joint, tower="encoders/image/.*")
