"""SmolVLM (arXiv 2504.05299): all of it on The Cauldron and Docmatix, from a text model whose
context was stretched first; that stage is the text model's own and not here. Then adapters of all
linear layers on preferences (SmolVLM-Instruct-DPO).

Learning rates, batch, steps and the mixture's weights of the first stage are not published: those
here are the house's. The second
is the command of the model's card (RLAIF-V, 8 x 32 pairs a device) with the defaults of the library
it calls (TRL): beta 0.1, three epochs, rank 16, alpha 32. Its batch is that of one device. Prompts:
"<|im_start|>User:<image>{question}<end_of_utterance>\\nAssistant:".
"""

from bigvlm.configs.train import _recipe as recipe
from bigvlm.configs.train import idefics2


def get_config(arg=None):
  """The stage with images, and that of preferences.

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
      recipe.SHARED
      | dict(
        name="prefer",
        data=recipe.pairs("rlaif_v"),
        lora=dict(rank=16, alpha=32.0, dropout=0.05, targets=idefics2.LINEAR),
        lr=1e-6,
        batch_size=256,
        epochs=3.0,
        schedule=dict(kind="linear", warmup=0.0),
        objective=dict(kind="dpo", beta=0.1),
      ),
    ),
  )
