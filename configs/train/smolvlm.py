"""SmolVLM (arXiv 2504.05299): all of it on The Cauldron and Docmatix, from a text model whose
context was stretched first; that stage is the text model's own and not here.

Learning rates and steps are not published: those here are the house's. Prompts:
"<|im_start|>User:<image>{question}<end_of_utterance>\\nAssistant:".
"""

from bigvlm.configs.train import _recipe as recipe


def get_config(arg=None):
  """The stage with images.

  Args:
    arg: `source` (default HuggingFaceTB/SmolVLM-Instruct), `tiny`.
  """
  return recipe.make(
    arg,
    name="smolvlm",
    source="HuggingFaceTB/SmolVLM-Instruct",
    toy="smolvlm",
    text_len=8192,
    media_len=17,
    tiny=(128, 10),
    stages=(
      dict(
        name="vision",
        data=recipe.data("the_cauldron", "docmatix", "mathwriting", weights=(0.5, 0.4, 0.1)),
        train=recipe.ALL,
        fresh=recipe.CONNECTOR,
        lr=1e-4,
        lr_mults=(("(encoders|decoder)/.*", 0.1),),
        batch_size=256,
        epochs=1.0,
        **recipe.SHARED,
      ),
    ),
  )
