"""BLIP-2 (arXiv 2301.12597, section 3.4), second stage: the Q-Former learns to speak to a text
model; tower and text model stay frozen.

The first stage teaches the Q-Former to match, contrast and tell images and texts; it starts this
one and is not run here, as its three losses belong to `Blip2ForImageTextRetrieval`. No prompt: the
caption follows the queries. With Flan-T5 (`source=Salesforce/blip2-flan-t5-xl`) batches are of
1520, and a part of the caption is the prefix.
"""

from bigvlm.configs.train import _recipe as recipe


def get_config(arg=None):
  """The generative stage with OPT.

  Args:
    arg: `source` (default Salesforce/blip2-opt-2.7b), `tiny`.
  """
  return recipe.make(
    arg,
    name="blip2",
    source="Salesforce/blip2-opt-2.7b",
    toy="blip2",
    text_len=64,
    read_len=32,
    stages=(
      recipe.SHARED
      | dict(
        name="generate",
        data=recipe.data("coco", "vg", "cc3m", "cc12m", "sbu", "laion_115m"),
        train=recipe.CONNECTOR,
        fresh=("connector/linear/.*",),
        lr=1e-4,
        weight_decay=recipe.decay(0.05, 1e-4),
        batch_size=1920,
        steps=80_000,
        schedule=dict(kind="cosine", warmup=2000, end=0.5),
        optimizer=dict(kind="adam", b2=0.98),
      ),
    ),
  )
