"""DeepSeek-VL (arXiv 2403.05525, table 2): the connector; the text model with it, on language most
of all; instructions, for which the image tower trains too.

The learning rate of the second stage falls in steps; where and how far is not said, so here as for
the text model before it, to 31.6 % after 80 % of the tokens and to 10 % after 90 % (DeepSeek LLM,
arXiv 2401.02954). The share of images grew slowly at the start of that stage; here it stays.
Prompts: "User: <image_placeholder>{question}\\n\\nAssistant:".
"""

from bigvlm.configs.train import _recipe as recipe


def get_config(arg=None):
  """All three stages of the 1.3B model.

  Args:
    arg: `source` (default deepseek-community/deepseek-vl-1.3b-chat), `tiny`.
  """
  source = "deepseek-community/deepseek-vl-1.3b-chat"
  return make(arg, "deepseek_vl", source, lr=3e-5, tower="encoders/.*")


def make(arg, name, source, lr, tower):
  """The stages with the learning rate of the second, and what trains of the towers in the third."""

  def stage(name, train, lr, batch, steps, kind, warmup, *data, **more):
    falls = ((0.8, 0.316), (0.9, 0.1)) if kind == "steps" else ()
    schedule = dict(
      schedule=dict(kind=kind, warmup=warmup, steps=falls), optimizer=dict(kind="adam", b2=0.95)
    )
    fields = dict(name=name, train=train, lr=lr, batch_size=batch, steps=steps, **more)
    return recipe.SHARED | schedule | fields | dict(data=recipe.data(*data))

  captions, images = ("sharegpt4v_1m", "document_ocr"), "interleaved_captions_tables_web_ocr"
  return recipe.make(
    arg,
    name=name,
    source=source,
    toy=name,
    text_len=4096,
    media_len=4,
    stages=(
      stage(
        "adaptor", recipe.CONNECTOR, 1e-3, 256, 15_000, "cosine", 128, *captions,
        fresh=recipe.CONNECTOR,
      ),
      stage("joint", recipe.TEXT, lr, 2304, 42_000, "steps", 2000, images, "language"),
      stage(
        "instruct", (*recipe.TEXT, tower), 2e-5, 256, 10_000, "constant", 256,
        "deepseek_vl_instruct", "sharegpt4v", "laion_gptv", "text_chat",
      ),
    ),
  )  # fmt: skip
