"""IDEFICS (Hugging Face, 2023): resampler, gated cross-attention and the new rows of the vocabulary
on interleaved pages, then all on instructions.

All values are of the model's card. Batches were counted in tokens, 1.31M of sequences of 1024 and
205k of 2048; the additional rows train with the head. Of the second stage's 22,000 steps the
authors took step 8000. Prompts: "User:{...}<end_of_utterance>\\n
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
  instructions = dict(
    m3it=7.7,
    lrv_instruct=1.7,
    llava_instruct=5.9,
    llavar=6.3,
    svit=11.4,
    scene_difference_spot_the_diff=2.1,
    ultrachat=29.1,
    image_text_pairs=5.1,
    obelics=30.7,
  )
  shared = recipe.SHARED | dict(lr=1e-5, weight_decay=recipe.decay(0.1, 1e-5))
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
        batch_size=1280,
        steps=200_000,
        schedule=dict(kind="linear", warmup=2000, end=0.6),
        objective=dict(kind="prefix_lm", normalize="token", z_loss=1e-3),
      ),
      shared
      | dict(
        name="instruct",
        data=recipe.data(*instructions, weights=tuple(instructions.values())),
        train=recipe.ALL,
        batch_size=100,
        steps=22_000,
        schedule=dict(kind="linear", warmup=1000, end=0.12),
        processor=dict(text_len=2048),
      ),
    ),
  )
