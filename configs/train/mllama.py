"""Llama 3.2-Vision (arXiv 2407.21783, section 7): tower, connector and the layers with
cross-attention; the text model stays frozen in every stage, so that it answers text as before.

Pairs (6B, then 500M) are published; the first batch, the rates of both and the weight decay are
uncertain. The steps are the quotient; the second batch, the shares of data and all of the
instructions' values are the house's. There the text model became the instructed one before them,
and several runs were averaged. Preference optimisation (DPO) trains the same parts; its rate, beta
and the weight of the chosen answer's likelihood are those of the text model (section 4.1.4), batch
and steps the house's. The authors moved the reference by an average every few steps; here it stays.
Prompts: Llama 3's headers, <|image|> in front of the question.
"""

from bigvlm.configs.train import _recipe as recipe

_CROSS = ("encoders/.*", "connector/.*", "decoder/blocks/g0/b3/.*")


def get_config(arg=None):
  """All four stages of the 11B model.

  Args:
    arg: `source` (default meta-llama/Llama-3.2-11B-Vision), `tiny`.
  """

  def stage(name, lr, batch, steps, *data, fresh=()):
    fields = dict(name=name, lr=lr, batch_size=batch, steps=steps, fresh=fresh, train=_CROSS)
    decayed = dict(weight_decay=recipe.decay(0.01, lr), data=recipe.data(*data))
    return recipe.SHARED | fields | decayed

  return recipe.make(
    arg,
    name="mllama",
    source="meta-llama/Llama-3.2-11B-Vision",
    toy="mllama",
    text_len=2048,
    media_len=4,
    tiny=(64, 4),
    stages=(
      stage("adapter", 1e-3, 16_384, 366_000, "image_text_6b", fresh=_CROSS[1:]),
      stage("anneal", 2e-5, 4096, 122_000, "image_text_500m", "academic", "ocr", "synthetic"),
      stage("instruct", 1e-5, 1024, 5000, "llama_vision_instruct"),
      stage("prefer", 1e-5, 256, 2000)
      | dict(
        data=recipe.pairs("llama_vision_preferences"),
        objective=dict(kind="dpo", beta=0.1, generation=0.2),
      ),
    ),
  )
