"""Fuyu-8B (Adept, 2023): patches straight into the text model, all of it trained.

Nothing of its training is published: this is fine-tuning with the house's settings. Prompts: the
image, "{question}\\n" and the token <0x04>, behind which the answer stands.
"""

from bigvlm.configs.train import _recipe as recipe


def get_config(arg=None):
  """Fine-tuning.

  Args:
    arg: `source` (default adept/fuyu-8b), `tiny`.
  """
  return recipe.make(
    arg,
    name="fuyu",
    source="adept/fuyu-8b",
    toy="fuyu",
    text_len=4096,
    media_len=2304,
    tiny=(64, 16),
    stages=(
      dict(
        name="finetune",
        data=recipe.data("captions", "vqa"),
        train=recipe.ALL,
        lr=1e-5,
        batch_size=64,
        epochs=1.0,
        **recipe.SHARED,
      ),
    ),
  )
