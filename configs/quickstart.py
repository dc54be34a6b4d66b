"""The quickstart: a small PaliGemma through all its stages, on real handwritten digits.

    bigvlm train configs/quickstart.py              (or quickstart:tiny, a smoke run)

Scenes of 64x64 pixels hold one to six scanned digits (`data/digits.py`); no scan of a test
scene is ever in a training scene. Stages: contrastive pre-training of the image tower,
multimodal training at 32 px from it, the resolution doubled with detection and segmentation
weighted up, and transfer to segmentation alone.

What makes minutes enough: convolutions before the layers of the image tower; pooling by the mean
in the first stage, which leaves each patch saying what it holds; Muon; batches of 16; boxes with
their digits (`detect_all`) as the teacher of "which digit is there"; neighbouring `<loc>` words
that start alike. What forms last is the way from a digit to its place ("detect 7"). So the digit
that is asked for is the last word of a prompt, and nothing separates it from the answer: the answer
begins where that digit is read. Behind a separator the same way forms far later.
"""

from bigvlm import config
from bigvlm.configs import common
from bigvlm.utils import jaxcache

CODEC = "workdir:mask_codec.npz"
VOCAB = 384  # of the tokenizer, before <loc> and <seg>
TOKENIZER = dict(kind="sentencepiece", path="workdir:tokenizer.model")
LOOK = dict(kind="digits", light_ink=0.0, noise=0.04, contrast=0.85, repeats=0.25)
SCENES = dict(digits=(1, 6), size=(18, 32))  # what every stage from the second on is tested on
ASKS = dict(caption=1.0, which=3.0, count=1.0, largest=1.0)


def digits(name, tasks, weight=1.0, **fields):
  """One source of training scenes."""
  return dict(LOOK, name=name, tasks=tasks, weight=weight, codec=CODEC, **fields)


def evals(n, tiny=False, every=0):
  """Evaluators of the generative stages: the same held-out scenes after each.

  What is slowest to learn is looked at every so many steps on the way.
  """

  def one(name, kind, tasks, examples, **fields):
    data = digits(f"test_{name}", tasks, split="test", seed=1, **SCENES)
    # One length for all is one program; it stops where every answer has ended.
    fields = dict(fields, data=data, examples=examples, max_new_tokens=48)
    return dict(name=name, kind=kind, **fields)

  # What `detect_all` adds says nothing of a smoke run.
  whole = () if tiny else (one("detect_all", "detection", dict(detect_all=1.0), n // 2),)
  return (
    one("caption", "caption", dict(caption=1.0), n),
    one("vqa", "vqa", dict(which=2.0, count=1.0, largest=1.0), 2 * n),
    one("detect", "detection", dict(detect=1.0), n, every=every),
    *whole,
    one("segment", "segmentation", dict(segment=1.0), n, codec=CODEC, every=every),
  )


def get_config(arg=None):
  """The quickstart's config.

  Args:
    arg: `tiny` runs the same four stages in seconds, and learns nothing.
  """
  a = config.parse_arg(arg)
  tiny = a.tiny
  width, depth = (32, 1) if tiny else (128, 2)
  c = common.base(name="quickstart")
  c.model = dict(
    encoders=dict(
      image=dict(
        kind="vit",
        width=width,
        depth=depth,
        hidden=4 * width,
        heads=4,
        patch=8,
        stem="conv",
        stem_blocks=0 if tiny else 2,
        pool="gap",
        posemb_std=0.6,
      )
    ),
    text=dict(kind="text_tower", width=96, depth=depth, hidden=192, heads=4, vocab=1536),
    temperature_init=10.0,
    bias_init=None,
    connector=dict(kind="linear", zero_init=False),
    decoder=dict(
      kind="decoder",
      vocab=1536,
      width=width,
      depth=1 if tiny else 3,
      hidden=2 * width,
      heads=4,
      kv_heads=4,
      head_dim=width // 4,
      qk_norm=True,
      ordered=(VOCAB, VOCAB + 1024),  # the <loc> words
    ),
  )
  c.processor = dict(
    kind="prefix_lm", image=dict(size=32), tokenizer=TOKENIZER, text_len=46, read_len=32, sep=""
  )
  c.log.every = 5 if tiny else 50
  c.log.tensorboard = not tiny
  if tiny:  # Its time is all compilation.
    c.compiler_options = dict(jaxcache.QUICK)
  c.checkpoint.every_seconds = 4.0 if tiny else 30.0
  c.loader.threads = 2
  c.prepare = dict(
    codec=dict(config="mask_codec:tiny" if tiny else "mask_codec", path="mask_codec.npz"),
    tokenizer=dict(
      data=dict(sources=(digits("text", dict(ASKS, detect=1.0, segment=1.0)),)),
      examples=200 if tiny else 2000,
      fields=("prefix", "text"),
      path="tokenizer.model",
      vocab_size=VOCAB,
      model_type="bpe",
      symbols=("detect▁", "segment▁", "▁;▁", *"0123456789"),  # a digit is one word everywhere
    ),
  )
  muon = dict(kind="muon", b1=0.95, b2=0.98)
  tasks = dict(ASKS, detect=4.0, detect_all=4.0)
  weighted = dict(ASKS, detect=8.0, detect_all=4.0, segment=5.0)
  n = 8 if tiny else 256
  test_one = dict(LOOK, split="test", seed=1, digits=(1, 1), size=(32, 60), tasks=dict(caption=1.0))
  c.stages = (
    common.stage(
      name="contrastive",
      model=dict(kind="two_tower"),
      processor=dict(
        kind="contrastive", tokenizer=dict(TOKENIZER, pad=1), image=dict(size=32), text_len=8
      ),
      data=dict(
        sources=(
          dict(LOOK, name="one", tasks=dict(caption=1.0), digits=(1, 1), size=(32, 60)),
          dict(LOOK, name="few", tasks=dict(caption=1.0), digits=(1, 3), size=(28, 44)),
        )
      ),
      batch_size=16 if tiny else 64,
      steps=4 if tiny else 500,
      lr=1e-3,
      schedule=dict(kind="rsqrt", warmup=0.05, timescale=1000, cooldown=0.3),
      optimizer=muon,
      objective=dict(kind="softmax"),
      evals=(
        dict(
          name="zeroshot",
          kind="zeroshot",
          data=dict(test_one, name="test_one"),
          examples=n,
          classes=tuple(str(d) for d in range(10)),
          templates=("{}",),
        ),
        dict(
          name="retrieval",
          kind="retrieval",
          data=dict(test_one, name="test_few", digits=(1, 3), size=(28, 44)),
          examples=n,
          same_text=True,
        ),
      ),
    ),
    common.stage(
      name="multimodal",
      model=dict(kind="vlm"),
      data=dict(sources=(digits("few", tasks, digits=(1, 3), size=(28, 44)),)),
      batch_size=16,
      steps=4 if tiny else 1600,
      lr=2e-3,
      schedule=dict(
        kind="rsqrt",
        warmup=0.05,
        timescale=1000,
        cooldown=0.3,
        groups=(("encoders/.*", dict(warmup=0.15)),),
      ),
      optimizer=muon,
      objective=dict(kind="prefix_lm", normalize="token"),
      init=dict(
        source="previous",
        fresh=("connector/.*", "decoder/.*"),
        drop=("text/.*", "t"),
      ),
      evals=evals(n, tiny),
    ),
    common.stage(
      name="resolution",
      model=dict(kind="vlm"),
      processor=dict(image=dict(size=64)),
      data=dict(
        sources=(
          digits("scenes", weighted, **SCENES),
          digits("few", weighted, **dict(SCENES, digits=(1, 3))),
        )
      ),
      batch_size=16,
      steps=4 if tiny else 2600,
      lr=2e-3,
      schedule=dict(kind="rsqrt", warmup=0.03, timescale=1000, cooldown=0.4),
      optimizer=muon,
      objective=dict(kind="prefix_lm", normalize="token"),
      init=dict(source="previous", optimizer="carry"),
      evals=evals(n, tiny, every=0 if tiny else 1300),
    ),
    common.stage(
      name="transfer",
      model=dict(kind="vlm"),
      processor=dict(image=dict(size=64)),
      data=dict(sources=(digits("segment", dict(segment=1.0), **SCENES),)),
      batch_size=16,
      steps=4 if tiny else 300,
      lr=5e-4,
      optimizer=muon,
      init=dict(source="previous"),
      evals=evals(n, tiny)[-1:],
    ),
  )
  return c
