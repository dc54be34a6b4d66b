"""Pixtral 12B (arXiv 2410.07073): all of it, tower included, on instructions.

Neither its pre-training nor its instruction tuning is published beyond that all of it was trained:
this is instruction tuning with the house's settings. Prompts: "<s>[INST]{question}[IMG][/INST]".
"""

from bigvlm.configs.train import _recipe as recipe


def get_config(arg=None):
  """Instruction tuning.

  Args:
    arg: `source` (default mistral-community/pixtral-12b), `tiny`.
  """
  return recipe.make(
    arg,
    name="pixtral",
    source="mistral-community/pixtral-12b",
    toy="pixtral",
    text_len=8192,
    media_len=4096,
    tiny=(192, 128),
    stages=(
      dict(
        name="instruct",
        data=recipe.data("interleaved_instruct"),
        train=recipe.ALL,
        lr=1e-5,
        lr_mults=(("encoders/.*", 0.1),),
        batch_size=128,
        epochs=1.0,
        **recipe.SHARED,
      ),
    ),
  )
