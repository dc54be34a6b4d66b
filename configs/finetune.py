"""Fine-tunes any checkpoint that `bigvlm.load` reads, on your own JSON Lines.

    bigvlm train finetune:source=llava-hf/llava-1.5-7b-hf,data=train.jsonl,text_len=1024

Records have `image` (a path, or a list of them), `prefix` and `suffix`; the checkpoint's own
processor prepares them. `bigvlm convert WORKDIR OUT` then writes what was trained in the form of
the checkpoint. See `docs/transfers.md`.
"""

from bigvlm import config
from bigvlm.configs import common

# What is trained, by the argument `train`.
_TRAIN = {
  "all": (".*",),
  "text": ("connector/.*", "decoder/.*"),
  "connector": ("connector/.*",),
}


def get_config(arg=None):
  """One stage that begins with a checkpoint of others.

  Args:
    arg: `source` (hub id or directory), `data` (a .jsonl file), `val` (another, scored at the end),
      `text_len` (with placeholders of pictures), `media_len` (pictures, tiles or patches of an
      example), `read_len` (most tokens of an answer), `train` (all, text or connector), `lora` (a
      rank; 0 = none), `lr`, `batch`, `steps`, `dtype`, `tiny` (2 steps of 2 examples).
  """
  a = config.parse_arg(
    arg,
    source="google/paligemma-3b-pt-224",
    data="train.jsonl",
    val="",
    text_len=1024,
    media_len=1,
    read_len=64,
    train="text",
    lora=0,
    lr=1e-5,
    batch=8,
    steps=1000,
    dtype="float32",
  )
  if a.train not in _TRAIN:
    raise ValueError(f"finetune: train={a.train!r} is none of {', '.join(_TRAIN)}")
  c = common.base(name="finetune")
  c.model = dict(kind="checkpoint", source=a.source)
  lengths = dict(text_len=a.text_len, media_len=a.media_len, read_len=a.read_len)
  c.processor = dict(kind="checkpoint", source=a.source, **lengths)
  c.dtype = dict(params="float32", compute=a.dtype, logits="float32")
  if a.tiny:
    c.log = dict(c.log, every=1, tensorboard=False)
  evals = ()
  if a.val:
    evals = (dict(name="val", kind="perplexity", data=dict(kind="jsonl", path=a.val)),)
  c.stages = (
    common.stage(
      name="finetune",
      init=dict(source=a.source),
      data=dict(sources=(dict(kind="jsonl", path=a.data),)),
      train=(".*",) if a.lora else _TRAIN[a.train],
      lora=dict(rank=a.lora),
      batch_size=2 if a.tiny else a.batch,
      steps=2 if a.tiny else a.steps,
      lr=a.lr,
      objective=dict(kind="prefix_lm"),
      evals=evals,
    ),
  )
  return c
