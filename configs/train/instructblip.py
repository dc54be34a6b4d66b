"""InstructBLIP (arXiv 2305.06500, section 2.6): the Q-Former reads the instruction too and alone
trains; tower and text model stay frozen. There it starts from BLIP-2, here from the checkpoint's
own.

13 data sets (three of `vqg` and three of `llava_instruct_150k` under one name) are mixed in
proportion to the square roots of their sizes, with templates of each, as "Question: {question}
Short answer:". Sizes differ in the batch alone: 192 with Flan-T5 XL, 128 with 7B models, 64 with
13B.
"""

from bigvlm.configs.train import _recipe as recipe

DATA = dict(
  coco_caption=0.75,
  textcaps=0.33,
  vqav2=0.67,
  okvqa=0.09,
  aokvqa=0.13,
  ocrvqa=0.9,
  vqg=0.3,
  llava_instruct_150k=0.4,
  web_capfilt_14m=3.7,
)


def get_config(arg=None):
  """The stage of the 7B model.

  Args:
    arg: `source` (default Salesforce/instructblip-vicuna-7b), `tiny`.
  """
  return make(arg, "instructblip", "Salesforce/instructblip-vicuna-7b", (64, 1))


def make(arg, name, source, tiny, media_len=1):
  """The stage for images or videos."""
  return recipe.make(
    arg,
    name=name,
    source=source,
    toy=name,
    text_len=512,
    read_len=256,
    media_len=media_len,
    tiny=tiny,
    stages=(
      recipe.SHARED
      | dict(
        name="instruct",
        data=recipe.data(*DATA, weights=tuple(DATA.values())),
        train=recipe.CONNECTOR,
        lr=1e-5,
        weight_decay=recipe.decay(0.05, 1e-5),
        batch_size=128,
        steps=60_000,
        schedule=dict(kind="cosine", warmup=1000),
      ),
    ),
  )
