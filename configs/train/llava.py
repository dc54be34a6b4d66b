"""LLaVA 1.5 (arXiv 2310.03744, table 9): the connector alone on captions, then with the text model
on instructions; the image tower stays frozen.

Prompts: "USER: <image>\\n{question} ASSISTANT:" after Vicuna's system line; captions of the first
stage follow the image with no words between.
"""

from bigvlm.configs.train import _recipe as recipe


def get_config(arg=None):
  """Both stages of the 7B model.

  Args:
    arg: `source` (default llava-hf/llava-1.5-7b-hf), `tiny`.
  """
  return recipe.make(
    arg,
    name="llava",
    source="llava-hf/llava-1.5-7b-hf",
    toy="llava",
    stages=stages("llava_pretrain_558k", "llava_instruct_665k"),
  )


def stages(captions, instructions):
  """The two stages on other data, of LLaVA's descendants."""
  return (
    dict(
      name="align",
      data=recipe.data(captions),
      train=recipe.CONNECTOR,
      fresh=recipe.CONNECTOR,
      lr=1e-3,
      batch_size=256,
      epochs=1.0,
      **recipe.SHARED,
    ),
    dict(
      name="instruct",
      data=recipe.data(instructions),
      train=recipe.TEXT,
      lr=2e-5,
      batch_size=128,
      epochs=1.0,
      **recipe.SHARED,
    ),
  )
