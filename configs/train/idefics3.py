"""Idefics3 (arXiv 2408.12637, table 3): the connector, then also adapters of the tower and the text
model, at a constant and then a falling learning rate.

Adapters are LoRA here, DoRA there, and noise on the embeddings (NEFTune) is not; their rank and the
weights of the data are the house's. Resolution grew inside the first stage from 364 to 1820; here
it is the checkpoint's own. Prompts: "User:<image>{question}<end_of_utterance>\\nAssistant: ".
"""

from bigvlm.configs.train import _recipe as recipe
from bigvlm.configs.train import idefics2

_PAGES = ("obelics", "laion_coco", "pdfa")
_MADE = ("docmatix", "websight", "lnqa", "pixelprose", "chartgemma")


def get_config(arg=None):
  """All four stages of the 8B model.

  Args:
    arg: `source` (default HuggingFaceM4/Idefics3-8B-Llama3), `tiny`.
  """
  constant = recipe.SHARED | dict(
    lr=1e-4, batch_size=1024, schedule=dict(kind="constant", warmup=0.0)
  )
  falling = constant | idefics2.LORA | dict(schedule=dict(kind="linear", warmup=0.0))
  return recipe.make(
    arg,
    name="idefics3",
    source="HuggingFaceM4/Idefics3-8B-Llama3",
    toy="idefics3",
    text_len=10_000,
    media_len=26,
    tiny=(128, 10),
    stages=(
      constant
      | dict(
        name="connector",
        data=recipe.data(*_PAGES[:2]),
        train=recipe.CONNECTOR,
        fresh=recipe.CONNECTOR,
        steps=1000,
      ),
      constant | idefics2.LORA | dict(name="pages", data=recipe.data(*_PAGES), steps=3000),
      falling | dict(name="synthetic", data=recipe.data(*_MADE), steps=1500),
      falling
      | dict(name="instruct", data=recipe.data("the_cauldron_extended"), lr=5e-5, steps=5000),
    ),
  )
