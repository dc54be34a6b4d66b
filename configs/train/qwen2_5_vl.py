"""Qwen2.5-VL (arXiv 2502.13923, table 2): tower, all, all on longer sequences, then instructions
and preferences (DPO) with the tower frozen.

Lengths and amounts of tokens are published (1.5T, 2T, 0.6T), learning rates, batches, steps and the
shares of data are not: those here, beta too, are the house's. The last stage sees each pair once.
Prompts: those of Qwen2-VL.
"""

from bigvlm.configs.train import _recipe as recipe
from bigvlm.configs.train import qwen2_vl


def get_config(arg=None):
  """All five stages of the 7B model.

  Args:
    arg: `source` (default Qwen/Qwen2.5-VL-7B-Instruct), `tiny`.
  """
  stage, whole = qwen2_vl.stage, ("image_text", "interleaved", "vqa", "video", "grounding", "agent")
  long = dict(processor=dict(text_len=32_768, media_len=65_536))
  return recipe.make(
    arg,
    name="qwen2_5_vl",
    source="Qwen/Qwen2.5-VL-7B-Instruct",
    toy="qwen2_5_vl",
    text_len=8192,
    media_len=16_384,
    tiny=(64, 64),
    stages=(
      stage("tower", ("encoders/.*", "connector/.*"), 1e-4, 180_000, "image_text", "ocr"),
      stage("all", recipe.ALL, 2e-5, 240_000, *whole, "text"),
      stage("long", recipe.ALL, 1e-5, 18_000, *whole, "long_video", "long_document") | long,
      stage("instruct", recipe.TEXT, 1e-5, 2000, "qwen_instruct_1m", "qwen_text_instruct_1m"),
      stage("prefer", recipe.TEXT, 5e-7, 0)
      | dict(
        data=recipe.pairs("qwen_preferences", "qwen_text_preferences"),
        batch_size=256,
        epochs=1.0,
        objective=dict(kind="dpo", beta=0.1),
      ),
    ),
  )
