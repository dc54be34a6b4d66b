"""InternVL 2.5 (arXiv 2412.05271): the connector, the connector with the tower, then all; and mixed
preference optimisation (InternVL2.5-MPO, arXiv 2411.10442).

Published for the 8B model (table 3), on packed sequences of 16,384 tokens and 48 tiles; here a
sequence is an example. Steps follow from the tokens (22B, 76B) but for the third stage, whose 5500
are of the authors' script, as the warm-ups are. Drop-path 0.1 of the tower has no counterpart, and
the loss is the mean over tokens, not weighed by the length of answers; the weights of the data are
not published. The last stage is that of the script for InternVL2.5-8B-MPO: DPO, BCO and generation
weigh 0.8, 0.2 and 1, one epoch of MMPR 1.1 at 1e-6 in batches of 256; beta 0.1 is the default of
the library it uses. Prompts: ChatML,
"<|im_start|>user\\n<image>\\n{question}<|im_end|>\\n<|im_start|>assistant\\n".
"""

from bigvlm.configs.train import _recipe as recipe


def get_config(arg=None):
  """All four stages of the 8B model.

  Args:
    arg: `source` (default OpenGVLab/InternVL2_5-8B-hf), `tiny`.
  """

  def stage(name, train, lr, batch, steps, warmup=0.03, fresh=()):
    return dict(
      recipe.SHARED,
      name=name,
      data=recipe.data("internvl2_5_instruct" if name == "instruct" else "internvl2_5_pretrain"),
      train=train,
      fresh=fresh,
      lr=lr,
      weight_decay=recipe.decay(0.05, lr),
      batch_size=batch,
      steps=steps,
      schedule=dict(kind="cosine", warmup=warmup),
    )

  towers = ("connector/.*", "encoders/.*")
  return recipe.make(
    arg,
    name="internvl",
    source="OpenGVLab/InternVL2_5-8B-hf",
    toy="internvl",
    text_len=4096,
    media_len=13,
    tiny=(96, 5),
    stages=(
      stage("warmup", recipe.CONNECTOR, 2e-4, 512, 2600, warmup=100, fresh=recipe.CONNECTOR),
      stage("towers", towers, 1e-5, 1024, 4500, warmup=100),
      stage("instruct", recipe.ALL, 4e-5, 512, 5500),
      stage("prefer", recipe.ALL, 1e-6, 256, 0)
      | dict(
        data=recipe.pairs("mmpr_1_1"),
        epochs=1.0,
        objective=dict(kind="dpo", beta=0.1, preference=0.8, quality=0.2, generation=1.0),
      ),
    ),
  )
