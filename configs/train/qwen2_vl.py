"""Qwen2-VL (arXiv 2409.12191, section 2.2): tower and connector, all, then all but the tower.

Amounts of tokens are published (600B, then 800B more); learning rates, batches, steps and the
shares of data are not: those here are the house's. Prompts: ChatML with
<|vision_start|><|image_pad|><|vision_end|>.
"""

from bigvlm.configs.train import _recipe as recipe


def get_config(arg=None):
  """All three stages of the 7B model.

  Args:
    arg: `source` (default Qwen/Qwen2-VL-7B-Instruct), `tiny`.
  """
  whole = ("image_text", "interleaved", "vqa", "video", "text")
  return recipe.make(
    arg,
    name="qwen2_vl",
    source="Qwen/Qwen2-VL-7B-Instruct",
    toy="qwen2_vl",
    text_len=8192,
    media_len=16_384,
    tiny=(64, 64),
    stages=(
      stage("tower", ("encoders/.*", "connector/.*"), 1e-4, 70_000, "image_text", "ocr"),
      stage("all", recipe.ALL, 2e-5, 100_000, *whole),
      stage("instruct", recipe.TEXT, 1e-5, 10_000, "qwen_instruct", "qwen_text_instruct"),
    ),
  )


def stage(name, train, lr, steps, *data):
  """A stage of the house's settings."""
  fields = dict(name=name, train=train, lr=lr, batch_size=1024, steps=steps)
  return recipe.SHARED | fields | dict(data=recipe.data(*data))
