"""Small runs with everything that a resume must bring back.

Dropout, augmentation, a mixture, gradient accumulation, an average, frozen
parameters, groups, a resolution change; checkpoints every few steps.
"""

from bigvlm import config as config_lib
from bigvlm.configs import common

VIT = dict(kind="vit", width=16, depth=1, hidden=24, heads=2, patch=8)
SOURCE = dict(kind="digits", canvas=32, size=(12, 20), digits=(1, 2), length=200)
KEEP = dict(op="keep", fields=("id", "image", "prefix", "suffix", "text"))
MIXTURE = dict(
  sources=(
    dict(SOURCE, name="which", weight=2.0, tasks=dict(which=1.0), seed=1),
    dict(
      SOURCE,
      name="caption",
      tasks=dict(caption=1.0),
      seed=2,
      ops=(KEEP, dict(op="inception_crop", size=32)),
    ),
  )
)
TOKENIZER = dict(kind="sentencepiece", path="workdir:tokenizer.model")
IMAGE = dict(size=16)
LM = dict(kind="prefix_lm", image=IMAGE, tokenizer=TOKENIZER, text_len=48, read_len=16)


def model(dropout: float) -> dict:
  decoder = dict(kind="decoder", vocab=1536, width=16, depth=1, hidden=24, heads=2, kv_heads=1)
  return dict(
    encoders=dict(image=dict(VIT, pool="map")),
    text=dict(kind="text_tower", width=16, depth=1, hidden=24, heads=2, vocab=1536),
    connector=dict(kind="linear", zero_init=False),
    decoder=dict(decoder, head_dim=8, dropout=dropout),
  )


def pair():
  return common.stage(
    name="pair",
    model=dict(kind="two_tower"),
    processor=dict(kind="contrastive", image=IMAGE, tokenizer=TOKENIZER, text_len=8),
    data=MIXTURE,
    batch_size=16,
    steps=4,
    objective=dict(kind="sigmoid"),
    train=("(?!encoders/image/patch).*",),
  )


def adapted():
  """Adapters on both towers, with dropout of their own, and the connector; the rest is frozen."""
  targets = (".*/attn/[qo]", "decoder/.*/mlp/up", "encoders/image/patch")
  return low(
    init=dict(source="fresh"),
    lora=dict(rank=3, alpha=6.0, targets=targets, dropout=0.2),
    train=(".*/lora_[ab]", "connector/.*"),
  )


def low(**fields):
  return common.stage(
    **dict(
      name="low",
      model=dict(kind="vlm"),
      processor=LM,
      data=MIXTURE,
      batch_size=16,
      steps=24,
      lr=3e-3,
      accumulate=2,
      ema=0.9,
      weight_decay=((".*/kernel", 1e-3),),
      lr_mults=(("encoders/.*", 0.5),),
      schedule=dict(kind="cosine", warmup=2.0, groups=(("encoders/.*", dict(warmup=16.0)),)),
      **fields,
    )
  )


def high():
  return common.stage(
    name="high",
    model=dict(kind="vlm"),
    processor=dict(LM, image=dict(size=32)),
    data=MIXTURE,
    batch_size=16,
    examples=64,
    train=("decoder/.*", "connector/.*", ".*/posemb"),
    optimizer=dict(kind="adafactor"),
  )


def get_config(arg=None):
  """`stages`: three stages, from contrastive to a doubled resolution; else the second alone.

  `lora`: the second alone, with adapters.
  """
  arg = config_lib.parse_arg(arg, stages=False, dropout=0.1, lora=False)
  stages = (adapted() if arg.lora else low(init=dict(source="fresh")),)
  if arg.stages:
    fresh, drop = ("connector/.*", "decoder/.*"), ("text/.*", "t", "b", "encoders/image/pool/.*")
    stages = (pair(), low(init=dict(fresh=fresh, drop=drop)), high())
  return common.base(
    name="toy",
    seed=3,
    model=model(arg.dropout),
    checkpoint=dict(every_steps=6, every_seconds=0.0, keep=9, verify="full"),
    log=dict(every=4, tensorboard=False),
    loader=dict(threads=2),
    prepare=dict(tokenizer=dict(data=MIXTURE, examples=64, vocab_size=1536)),
    stages=stages,
  )
