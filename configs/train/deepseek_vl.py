"""DeepSeek-VL (arXiv 2403.05525, table 4): the connector; the text model with it, on language most
of all; instructions, for which the image tower trains too.

The learning rate of the second stage falls in steps; where and how far is not said, so here as for
the text model before it, to 31.6 % after 80 % of the tokens and to 10 % after 90 % (DeepSeek LLM,
arXiv 2401.02954). Language and images are 7 : 3 there; the share of images grew slowly at the
start, here it stays. The first stage's data weigh as many as they are, those of the last are ours.
Prompts: "User: <image_placeholder>{question}\\n\\nAssistant:".
"""

from bigvlm.configs.train import _recipe as recipe


def get_config(arg=None):
  """All three stages of the 1.3B model.

  Args:
    arg: `source` (default deepseek-community/deepseek-vl-1.3b-chat), `tiny`.
  """
  source = "deepseek-community/deepseek-vl-1.3b-chat"
  return make(arg, "deepseek_vl", source, joint=(3e-5, 1024, 96_000), tower="encoders/.*")


def make(arg, name, source, joint, tower):
  """The stages.

  Args:
    arg, name, source: of `_recipe.make`. joint: learning rate, batch and steps of the second.
    tower: what trains of the towers in the third.
  """

  def stage(name, train, lr, batch, steps, kind, warmup, data, **more):
    falls = ((0.8, 0.316), (0.9, 0.1)) if kind == "steps" else ()
    schedule = dict(
      schedule=dict(kind=kind, warmup=warmup, steps=falls), optimizer=dict(kind="adam", b2=0.95)
    )
    fields = dict(name=name, train=train, lr=lr, batch_size=batch, steps=steps, **more)
    return recipe.SHARED | schedule | fields | dict(data=data)

  captions = recipe.data("sharegpt4v_1m", "document_ocr", weights=(1.25, 2.5))
  mixture = recipe.data("interleaved_captions_tables_web_ocr", "language", weights=(0.3, 0.7))
  instructions = recipe.data("deepseek_vl_instruct", "sharegpt4v", "laion_gptv", "text_chat")
  return recipe.make(
    arg,
    name=name,
    source=source,
    toy=name,
    text_len=4096,
    media_len=4,
    stages=(
      stage(
        "adaptor", recipe.CONNECTOR, 1e-3, 256, 15_000, "cosine", 128, captions,
        fresh=recipe.CONNECTOR,
      ),
      stage("joint", recipe.TEXT, *joint, "steps", 2000, mixture),
      stage(
        "instruct", (*recipe.TEXT, tower), 2e-5, 256, 10_000, "cosine", 256, instructions,
      ),
    ),
  )  # fmt: skip
