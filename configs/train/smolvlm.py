"""SmolVLM (arXiv 2504.05299): all of it on documents and instructions, then adapters of all linear
layers on preferences (SmolVLM-Instruct-DPO).

The first stage has the values of the authors' configuration of the second stage of the 2.2B model
(huggingface/smollm, tr_350), with 30% documents; shares within them and within instructions are the
house's, and noise on the embeddings (NEFTune) is not there. Before it they trained connector and
adapters (DoRA) on captions and documents for 22,250 steps, which is not here: the connector begins
anew in the first stage. The last is the command of the model's card (RLAIF-V, 8 x 32 pairs a
device) with the defaults of the library it calls (TRL): beta 0.1, three epochs, rank 16, alpha 32.
Its batch is that of one device. Prompts:
"<|im_start|>User:<image>{question}<end_of_utterance>\\nAssistant:".
"""

from bigvlm.configs.train import _recipe as recipe
from bigvlm.configs.train import idefics2


def get_config(arg=None):
  """The stage with images, and that of preferences.

  Args:
    arg: `source` (default HuggingFaceTB/SmolVLM-Instruct), `tiny`.
  """
  mixture = dict(
    pdfa=0.1, idl=0.1, rendered_text=0.1, the_cauldron=0.3, docmatix=0.3, mathwriting=0.1
  )
  return recipe.make(
    arg,
    name="smolvlm",
    source="HuggingFaceTB/SmolVLM-Instruct",
    toy="smolvlm",
    text_len=8192,
    media_len=17,
    tiny=(128, 10),
    stages=(
      recipe.SHARED
      | dict(
        name="vision",
        data=recipe.data(*mixture, weights=tuple(mixture.values())),
        train=recipe.ALL,
        fresh=recipe.CONNECTOR,
        lr=1e-4,
        weight_decay=recipe.decay(0.1, 1e-4),
        batch_size=2048,
        steps=6000,
        schedule=dict(kind="linear", warmup=100),
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
