"""Idefics2 (arXiv 2405.02246): the connector, and adapters of the tower and the text model, in
every stage; their own weights stay frozen.

Published (sections 4.1, 4.2, table 14): of pre-training the learning rate, the batch and the shares
of pages, pairs and documents; of instructions the share of text alone, there of answer tokens. The
house's: rank, steps, schedule, shares within pairs and documents, rate, batch and epochs of the
last stage. Images were of up to 384 pixels in the first stage and 980 then; here they are the
processor's in all. DoRA of the last stage is LoRA here, and noise on the embeddings (NEFTune) is
not. Prompts: "User:<image>{question}<end_of_utterance>\\nAssistant: ".
"""

from bigvlm.configs.train import _recipe as recipe

LINEAR = (r"(encoders|decoder)/.*/(attn|mlp)/[a-z0-9_]+",)
LORA = dict(
  train=("connector/.*", r".*/lora_[ab]"),
  lora=dict(rank=64, alpha=64.0, dropout=0.1, targets=LINEAR),
)


def get_config(arg=None):
  """All three stages of the 8B model, with images in one piece.

  Args:
    arg: `source` (default HuggingFaceM4/idefics2-8b-base), `tiny`.
  """
  shared = recipe.SHARED | LORA | dict(lr=1e-4)
  pages = ("obelics", "laion_coco", "pmd")
  return recipe.make(
    arg,
    name="idefics2",
    source="HuggingFaceM4/idefics2-8b-base",
    toy="idefics2",
    text_len=2048,
    media_len=8,
    stages=(
      shared
      | dict(
        name="pretrain",
        data=recipe.data(*pages, weights=(0.7, 0.15, 0.15)),
        fresh=recipe.CONNECTOR,
        batch_size=2048,
        steps=10_000,
      ),
      shared
      | dict(
        name="text_in_images",
        data=recipe.data(
          *(*pages, "rendered_text", "pdfa", "idl"),
          weights=(0.45, 0.175, 0.175, 0.06, 0.07, 0.07),
        ),
        batch_size=2048,
        steps=5000,
      ),
      shared
      | dict(
        name="instruct",
        data=recipe.data("the_cauldron", "text_instruct", weights=(0.74, 0.26)),
        lr=5e-5,
        batch_size=256,
        epochs=1.0,
      ),
    ),
  )
