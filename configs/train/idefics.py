"""IDEFICS (Hugging Face, 2023): resampler, gated cross-attention and the new rows of the vocabulary
on interleaved pages, then all on instructions.

Batches were counted in tokens, 1.31M of sequences of 1024; its additional rows train with the head.
The learning rate of the second stage is uncertain. Prompts: "User:{...}<end_of_utterance>\\n
Assistant:{...}<end_of_utterance>\\n" with images where they stand.
"""

from bigvlm.configs.train import _recipe as recipe

_NEW = ("connector/.*", r"decoder/blocks/g\d+/b0/.*", "decoder/(head|head_extra|embedding_extra)")


def get_config(arg=None):
  """Both stages of the 9B model.

  Args:
    arg: `source` (default HuggingFaceM4/idefics-9b), `tiny`.
  """
  pages = recipe.data("obelics", "wikipedia", "laion", "pmd", weights=(73.85, 6.15, 17.18, 2.82))
  shared = recipe.SHARED | dict(batch_size=1280)
  return recipe.make(
    arg,
    name="idefics",
    source="HuggingFaceM4/idefics-9b",
    toy="idefics",
    text_len=1024,
    media_len=4,
    stages=(
      shared
      | dict(
        name="pretrain",
        data=pages,
        train=_NEW,
        lr=1e-5,
        weight_decay=recipe.decay(0.1, 1e-5),
        steps=200_000,
        schedule=dict(kind="linear", warmup=2000, end=0.6),
      ),
      shared
      | dict(
        name="instruct",
        data=recipe.data("m3it", "lrv_instruct", "llava_instruct", "llavar", "svit", "ultrachat"),
        train=recipe.ALL,
        lr=1e-6,
        batch_size=256,
        epochs=1.0,
      ),
    ),
  )
