"""BLIP-2 (arXiv 2301.12597, section 3): a Q-Former learns what of a picture a text tells, and then
to speak to a text model. The image tower is frozen in both stages, the text model in the second.

`represent` (3.2): image-text contrast (the nearest query's similarity), image-text matching (each
pair once as it is, once with another picture, once with another text, drawn by their similarity)
and image-grounded writing, of one weight. 250k steps of 1680 pairs (2320 with ViT-L).
`generate` (3.3): the caption after the queries, 80k steps of 1920; no prompt. With Flan-T5
(`source=Salesforce/blip2-flan-t5-xl`) batches are of 1520, and a part of the caption is the prefix.

Both: AdamW 0.9, 0.98, decay 0.05, rate 1e-4 after 2000 steps of warmup, at the end 5e-5 in the
second stage. Pictures are 224 pixels wide, random crops of them and mirrored (`ops=` of your data:
`inception_crop`, `flip_lr`).

Not in the paper but in the authors' code: the norm behind the image tower trains, label smoothing
of 0.1, 32 tokens of a text, a temperature that begins at 0.07, in the first stage a rate of 1e-5 at
the end, and BERT's dropout (here of what the layers give, not of attention weights, and in the
first stage alone).

Ours: the paper starts the Q-Former from BERT-base, but for its cross-attention; here all of it is
drawn anew, and only the tower and the tokenizer are of the checkpoint. The text of a pair is the
prefix and the suffix of its record; the tokenizer's start token ([DEC]) tells that it is written.
The data weigh as many as their images are.

`bigvlm convert WORKDIR/checkpoints/represent OUT` gives a directory for
`Blip2ForImageTextRetrieval`, without temperature and language head, which that has not.
"""

from bigvlm import config
from bigvlm.configs.train import _recipe as recipe

# Millions of images.
_SIZES = dict(coco=0.11, vg=0.1, cc3m=3.0, cc12m=10.0, sbu=0.86, laion_115m=115.0)
_DATA = recipe.data(*_SIZES, weights=tuple(_SIZES.values()))
_FORMER = ("connector/(query|norm/.*|blocks/.*)", "encoders/image/norm/.*")
_HEADS = ("words/.*", "t")


def get_config(arg=None):
  """Both stages, the second with OPT.

  Args:
    arg: `source`, of the second stage (default Salesforce/blip2-opt-2.7b); `former`, where its
      Q-Former comes from: the first stage, or instead of that a workdir or a checkpoint of its
      model, as Salesforce/blip2-itm-vit-g; `tiny`.
  """
  a = config.parse_arg(arg, source="Salesforce/blip2-opt-2.7b", former="previous")
  shared = recipe.SHARED | dict(
    data=_DATA,
    lr=1e-4,
    weight_decay=recipe.decay(0.05, 1e-4),
    optimizer=dict(kind="adam", b2=0.98),
  )
  represent = shared | dict(
    name="represent",
    checkpoint=("Salesforce/blip2-itm-vit-g", "blip2_retrieval"),
    model=dict(temperature_init=1 / 0.07, word_head=True, connector=dict(dropout=0.1)),
    processor=dict(text_len=32),
    train=("encoders/image/norm/.*", "connector/.*", "(image|text|match)/.*", *_HEADS),
    fresh=("connector/.*", "(image|text|match)/.*"),
    new=_HEADS,
    weight_decay=(("t", 0.0), *recipe.decay(0.05, 1e-4)),
    batch_size=1680,
    steps=250_000,
    schedule=dict(kind="cosine", warmup=2000, end=0.1),
    objective=dict(
      kind="total",
      parts=dict(
        contrast=dict(kind="scores", label_smoothing=0.1),
        match=dict(kind="match"),
        write=dict(kind="prefix_lm", label_smoothing=0.1, normalize="token"),
      ),
    ),
  )
  generate = shared | dict(
    name="generate",
    train=(*recipe.CONNECTOR, "encoders/image/norm/.*"),
    fresh=("connector/linear/.*",),
    parts=((a.former, _FORMER),),
    batch_size=1920,
    steps=80_000,
    schedule=dict(kind="cosine", warmup=2000, end=0.5),
  )
  return recipe.make(
    a,
    name="blip2",
    source=a.source,
    toy="blip2",
    text_len=64,
    read_len=32,
    stages=(represent, generate) if a.former == "previous" else (generate,),
  )
