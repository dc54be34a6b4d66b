"""A text model alone (Llama, Mistral, Qwen2, OPT, Phi, Persimmon, Gemma): instruction tuning.

Records are those of `docs/data.md` without an image: `prefix` and `suffix`. The rate, batch, epochs
and warm-up are those of Alpaca on Llama 7B (Stanford, 2023: 2e-5, 128, three epochs, 3%, no decay),
the data too; that all of it is one checkpoint's recipe for every text model is the house's. To
continue pre-training, let `prefix` be empty: the loss is on every token of `suffix`.
"""

from bigvlm.configs.train import _recipe as recipe


def get_config(arg=None):
  """Instruction tuning of the whole model.

  Args:
    arg: `source` (default huggyllama/llama-7b), `tiny`.
  """
  return recipe.make(
    arg,
    name="text",
    source="huggyllama/llama-7b",
    toy="text",
    text_len=512,
    read_len=512,
    pictures=False,
    stages=(
      recipe.SHARED
      | dict(
        name="instruct",
        data=recipe.data("alpaca_52k"),
        train=recipe.ALL,
        lr=2e-5,
        batch_size=128,
        epochs=3.0,
      ),
    ),
  )
