"""A run of three small stages with everything that a resume must bring back.

Dropout, augmentation, a mixture, gradient accumulation, an average, frozen
parameters, a resolution change; checkpoints every few steps.
"""

import copy

from bigvlm.configs import common

VIT = dict(kind="vit", width=16, depth=2, hidden=24, heads=2, patch=8, dropout=0.1)
MODEL = dict(
  encoders=dict(image=dict(VIT, pool="map")),
  text=dict(kind="text_tower", width=16, depth=1, hidden=24, heads=2, vocab=1536),
  connector=dict(kind="linear", zero_init=False),
  decoder=dict(
    kind="decoder",
    vocab=1536,
    width=16,
    depth=2,
    hidden=24,
    heads=2,
    kv_heads=1,
    head_dim=8,
    dropout=0.1,
  ),
)
SOURCE = dict(kind="digits", canvas=32, size=(12, 20), digits=(1, 2), length=200)
MIXTURE = dict(
  sources=(
    dict(SOURCE, name="which", weight=2.0, tasks=dict(which=1.0), seed=1),
    dict(
      SOURCE,
      name="caption",
      weight=1.0,
      tasks=dict(caption=1.0),
      seed=2,
      ops=(
        dict(op="keep", fields=("id", "image", "prefix", "suffix", "text")),
        dict(op="inception_crop", size=32),
      ),
    ),
  )
)


def get_config(arg=None):
  """The config; `arg` is ignored."""
  del arg
  text = dict(kind="sentencepiece", path="workdir:tokenizer.model")
  image = dict(size=16)
  lm = dict(kind="prefix_lm", image=image, tokenizer=text, text_len=48, read_len=16)
  stages = (
    common.stage(
      name="pair",
      model=dict(kind="two_tower"),
      processor=dict(kind="contrastive", image=image, tokenizer=text, text_len=8),
      data=MIXTURE,
      batch_size=16,
      steps=6,
      objective=dict(kind="sigmoid"),
      train=("(?!encoders/image/embedding).*",),
    ),
    common.stage(
      name="low",
      model=dict(kind="vlm"),
      processor=lm,
      data=MIXTURE,
      batch_size=16,
      steps=8,
      accumulate=2,
      ema=0.9,
      weight_decay=((".*/kernel", 1e-3),),
      lr_mults=(("encoders/.*", 0.5),),
      schedule=dict(kind="cosine", warmup=2, groups=(("encoders/.*", dict(warmup=6)),)),
      init=dict(fresh=("connector/.*", "decoder/.*"), drop=("text/.*", "t", "b", "encoders/image/pool/.*")),
    ),
    common.stage(
      name="high",
      model=dict(kind="vlm"),
      processor=copy.deepcopy(lm) | dict(image=dict(size=32)),
      data=MIXTURE,
      batch_size=16,
      steps=4,
      train=("decoder/.*", "connector/.*", ".*/posemb"),
      optimizer=dict(kind="adafactor"),
    ),
  )
  return common.base(
    name="toy",
    seed=3,
    model=MODEL,
    checkpoint=dict(every_steps=3, every_seconds=0.0),
    log=dict(every=2, tensorboard=False),
    loader=dict(threads=2),
    prepare=dict(tokenizer=dict(data=MIXTURE, examples=64, vocab_size=320)),
    stages=stages,
  )
