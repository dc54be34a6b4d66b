"""DeepSeek-VL 7B: SigLIP and SAM together; the stages of the small model, and SAM stays frozen."""

from bigvlm.configs.train import deepseek_vl


def get_config(arg=None):
  """All three stages.

  Args:
    arg: `source` (default deepseek-community/deepseek-vl-7b-chat), `tiny`.
  """
  source = "deepseek-community/deepseek-vl-7b-chat"
  return deepseek_vl.make(arg, "deepseek_vl_hybrid", source, lr=4.2e-5, tower="encoders/image/.*")
