"""PaliGemma's published transfers, for PaliGemma and PaliGemma 2.

    bigvlm train transfers/paligemma:task=vqav2,res=448,data=/my/data
    bigvlm train transfers/paligemma:task=textvqa,res=896,size=2-3b,data=/my/data

Records are JSON Lines, DATA/TASK/train.jsonl and val.jsonl: `image`, `suffix`, and the fields that
the task's prefix pattern names, or `prefix` itself. docs/transfers.md has the table and the forms.
The numbers are those that big_vision's configs (configs/proj/paligemma/transfers) found best, for
arXiv 2407.07726.
"""

from bigvlm import config
from bigvlm.configs import common
from bigvlm.configs.models import paligemma as models
from bigvlm.utils import names

ANSWER, CAPTION = "answer en {question}", "caption en"
CHOOSE = "answer en  {question} choose from: {choices}"
SCIENCE = "Question: {question}\nContext: {hint}\nOptions: {options}\nAnswer:"
DECAYED = "(encoders|connector)/.*/kernel"
ALL = (224, 448, 896)
VIDEO = dict(res=(224,), images=16, batch=128)
LANGUAGES = (
  *("ar", "bn", "cs", "da", "de", "el", "en", "es", "fa", "fi", "fil", "fr", "he", "hi", "hr"),
  *("hu", "id", "it", "ja", "ko", "mi", "nl", "no", "pl", "pt", "ro", "ru", "sv", "sw", "te"),
  *("th", "tr", "uk", "vi", "zh"),
)


def task(
  epochs,
  lr,
  *,
  res=(224, 448),
  examples=0,
  batch=256,
  wd=0.0,
  smoothing=0.0,
  dropout=0.0,
  freeze_vit=False,
  only=(),
  optimizer="adam",
  warmup=0.05,
  text_len=32,
  images=1,
  stride=1,
  prefix=ANSWER,
  suffix="",
  sep=", ",
  special="",
  lower="",
  score="vqa:exact",
  beams=0,
  train=(("train", 1.0),),
  val=("val",),
  tests=(),
  size="3b",
  init="pt",
):
  """A row of the table. A value may also be a dict by resolution.

  Args:
    epochs, examples: passes over the training records, or how many are seen in all.
    lr, optimizer, warmup: learning rate, kind, share of the steps.
    res: resolutions it was published at.
    batch, wd, smoothing, dropout: batch size, decay (of the kernels of image tower and connector,
      times the schedule but not the learning rate), label smoothing, dropout of the decoder.
    freeze_vit, only: whether image tower and connector stay as they are; what alone is trained.
    text_len, images, stride: positions after the pictures, pictures or frames, their distance.
    prefix, suffix: patterns; "" = the record has the field. sep: between items of a list.
    special, lower: an op of its own ("letters", "box"); suffixes in lower case ("both", "eval").
    score: kind of the evaluator and, for vqa, its score. beams: of its search; 0 = greedy.
    train, val, tests: (file, weight) of the sources; files to score; those only when asked for.
    size, init: which model it was made for, and from which of its checkpoints.
  """
  return dict(locals())


TASKS = {
  "activitynet_cap": task(
    1, 1e-5, **VIDEO, stride=30, wd=1e-6, freeze_vit=True, text_len=64, prefix=CAPTION,
    score="caption",
  ),
  "activitynet_qa": task(1, 1e-5, **VIDEO, stride=70, wd=1e-6, text_len=64),
  "ai2d": task(10, 1e-5, wd=1e-6, text_len=128, prefix=CHOOSE, sep=" \t "),
  "aokvqa_da": task(10, 5e-6, batch=128, score="vqa:vqa"),
  "aokvqa_mc": task(15, 5e-6, batch=128, text_len=128, prefix=CHOOSE, sep=" \t "),
  "chartqa": task(
    30, 1e-5, res=ALL, wd=1e-6, smoothing=0.2, dropout=0.1, text_len=48, prefix="{question}",
    score="vqa:relaxed", train=(("train_human", 7398.0), ("train_augmented", 20901.0)),
  ),
  "coco35l": task(
    0, 1e-5, examples=5 * 566_435, wd=1e-6, prefix="caption {language}", score="caption",
    train=tuple((f"train_{name}", 1.0) for name in LANGUAGES),
    val=tuple(f"val_{name}" for name in LANGUAGES),
    tests=tuple(f"xm3600_{name}" for name in sorted((*LANGUAGES, "quz"))),
  ),
  "cococap": task(
    5, 1e-5, wd=1e-6, prefix=CAPTION, score="caption", beams=2, tests=("nocaps",)
  ),
  "docvqa": task(10, 1e-5, res=ALL, wd=1e-6, prefix="{question}", score="vqa:anls"),
  "gqa": task(
    1, 1e-5, freeze_vit={224: False, 448: True},
    tests=tuple(f"xgqa_{name}" for name in ("bn", "de", "en", "id", "ko", "pt", "ru", "zh")),
  ),
  "infovqa": task(
    3, {224: 1e-5, 448: 1e-5, 896: 3e-6}, res=ALL, batch={224: 256, 448: 128, 896: 32},
    wd={224: 1e-6, 448: 1e-6, 896: 3e-7}, smoothing=0.4, text_len=48, lower="both",
    score="vqa:anls",
  ),
  "msrvtt_cap": task(
    20, 1e-5, **VIDEO, stride=9, freeze_vit=True, prefix=CAPTION, score="caption"
  ),
  "msrvtt_qa": task(1, 1e-5, **VIDEO, stride=9, freeze_vit=True, text_len=64),
  "msvd_qa": task(1, 3e-6, **{**VIDEO, "images": 8}, stride=26, wd=3e-7, text_len=64),
  "nlvr2": task(
    {224: 3, 448: 10}, {224: 1e-5, 448: 3e-6}, wd={224: 1e-6, 448: 3e-7}, images=2, text_len=64,
    prefix="answer en {sentence}",
    tests=tuple(f"marvl_{name}" for name in ("id", "sw", "ta", "tr", "zh")),
  ),
  "ocrvqa": task(3, {224: 3e-6, 448: 3e-6, 896: 1e-5}, res=ALL, batch=128, lower="eval"),
  "okvqa": task(10, 5e-6, batch=128, score="vqa:vqa"),
  # Nothing is learnt: one step of size 0, to score a transfer to VQAv2.
  "pope": task(
    0, 0.0, examples=1, text_len=48, init="ft-vqav2", only=("connector/linear/bias",),
    train=tuple((name, 1.0) for name in ("random", "popular", "adversarial")),
    val=("random", "popular", "adversarial"),
  ),
  "refcoco_seg": task(
    100, {224: 3e-5, 448: 1e-5, 896: 1e-5}, res=ALL, batch={224: 256, 448: 256, 896: 64},
    smoothing=0.3, dropout={224: 0.1, 448: 0.0, 896: 0.0}, text_len=48, prefix="{sentence}",
    score="segmentation",
    tests=(
      *("refcoco_testA", "refcoco_testB", "refcocop_val", "refcocop_testA", "refcocop_testB"),
      *("refcocog_val", "refcocog_test"),
    ),
  ),
  "rsvqa_hr": task(1, 1e-5, lower="both", tests=("test", "test2")),
  "rsvqa_lr": task(3, 3e-6, smoothing=0.2, tests=("test",)),
  "scicap": task(
    80, 3e-5, smoothing=0.1, dropout=0.1, text_len=96, prefix=CAPTION, score="caption"
  ),
  "science_qa": task(
    20, 1e-5, batch=128, freeze_vit=True, text_len=512, special="letters", prefix=SCIENCE,
    suffix="The answer is {letter}.",
  ),
  "screen2words": task(
    10, 1e-5, smoothing=0.2, dropout=0.3, text_len=24, prefix=CAPTION, score="caption"
  ),
  "stvqa": task(
    3, {224: 1e-5, 448: 1e-5, 896: 3e-6}, res=ALL, batch={224: 256, 448: 128, 896: 32},
    wd={224: 1e-6, 448: 1e-6, 896: 3e-7}, smoothing=0.1, text_len=48, lower="both",
    score="vqa:anls",
  ),
  "tallyqa": task(
    2, {224: 1e-5, 448: 1e-5, 896: 7e-6}, res=ALL, wd={224: 0.0, 448: 1e-6, 896: 7e-7},
    tests=("countbenchqa",),
  ),
  "textcaps": task(
    5, 1e-5, wd=1e-6, prefix=CAPTION, score="caption", beams=3, lower="both"
  ),
  "textvqa": task(
    {224: 5, 448: 10, 896: 10}, 3e-6, res=ALL, wd={224: 0.0, 448: 3e-7, 896: 0.0},
    score="vqa:textvqa",
  ),
  "vatex_cap": task(
    10, 3e-6, **VIDEO, stride=7, wd=3e-7, text_len=64, prefix=CAPTION, score="caption"
  ),
  "vizwizvqa": task(10, 1e-5, text_len=48, score="vqa:vqa"),
  "vqav2": task(10, 1e-5, wd={224: 1e-6, 448: 0.0}, score="vqa:vqa"),
  "widgetcap": task(
    4, 3e-6, batch=64, wd=3e-7, smoothing=0.1, dropout=0.1, special="box", prefix=CAPTION,
    score="caption",
  ),
  # Templates for a task of your own: records with image, prefix and suffix.
  "forkme": task(
    15, 1e-5, res=ALL, batch=32, wd=3e-7, text_len=128, prefix="", score="caption", size="2-3b"
  ),
  "vertexai_l4": task(
    1, 0.1, res=ALL, batch=4, text_len=128, prefix="", score="caption",
    optimizer="sgd",
  ),
  "colab_t4": task(
    0, 0.03, res=(224,), examples=512, batch=8, text_len=128, prefix="", score="caption",
    optimizer="sgd", warmup=0.1, only=("decoder/blocks/.*/attn/.*",),
  ),
}  # fmt: skip


def get_config(arg=None):
  """One transfer.

  Args:
    arg: `task`, `res` (224, 448, 896), `size` (3b, 2-3b, 2-10b, 2-28b), `data` (the folder with a
      folder for each task), `init` (a checkpoint instead of the published one), `tokenizer` (a
      sentencepiece model instead of the published one), `codec` (mask codec of refcoco_seg),
      `stride` (of frames; 1 = they are chosen already), `tests` (the further evaluators too),
      `batch_size`, `text_len`, `freeze_vit`, `freeze_llm`, `tiny` (a few steps of a toy model).

  Raises:
    ValueError: an unknown task, or a resolution that it was not published at.
  """
  a = config.parse_arg(
    arg, task="forkme", res=224, size="", data="data", init="", tokenizer="", codec="", stride=0,
    tests=False, batch_size=0, text_len=0, freeze_vit=False, freeze_llm=False,
  )  # fmt: skip
  row = names.lookup("task", a.task, TASKS)
  if a.res not in row["res"]:
    known = ", ".join(map(str, row["res"]))
    raise ValueError(f"task {a.task!r} was published at res {known}, not {a.res}")
  row = {key: v[a.res] if isinstance(v, dict) and a.res in v else v for key, v in row.items()}
  if row["only"] and (a.freeze_vit or a.freeze_llm):
    raise ValueError(f"task {a.task!r} trains {row['only'][0]} alone; leave freeze_* out")
  size = a.size or row["size"]
  c = _base(a, row, size)
  frozen = a.freeze_vit or row["freeze_vit"]
  parts = () if frozen else ("encoders/.*", "connector/.*")
  parts += () if a.freeze_llm else ("decoder/.*",)
  decays = row["wd"] and not frozen and not row["only"]
  length = dict(epochs=float(row["epochs"]), examples=row["examples"])
  c.stages = (
    common.stage(
      name=a.task,
      data=dict(sources=_sources(a, row)),
      batch_size=a.batch_size or (4 if a.tiny else row["batch"]),
      train=row["only"] or parts,
      lr=row["lr"],
      schedule=dict(kind="cosine", warmup=row["warmup"]),
      optimizer=dict(kind=row["optimizer"], b2=0.999),
      weight_decay=((DECAYED, row["wd"]),) if decays else (),
      grad_clip=1.0,
      objective=dict(kind="prefix_lm", label_smoothing=row["smoothing"], normalize="example"),
      init=dict(source=a.init or ("fresh" if a.tiny else c.init.source)),
      evals=_evals(a, row),
      **(dict(steps=2) if a.tiny else length),
    ),
  )
  return c


def _base(a, row, size):
  """Everything but the stage."""
  text_len = a.text_len or (96 if a.tiny else row["text_len"])
  c = models.get_config(f"size={size},res={a.res},text_len={text_len}{',tiny' * a.tiny}")
  c.name = f"paligemma_{a.task}"
  c.processor.image.count = row["images"]
  c.model.decoder.dropout = row["dropout"]
  c.model.decoder.final_softcap = 0.0  # Gemma 2's, which transfers do without.
  c.layers = "scan"
  if a.tiny:
    c.processor.read_len = 32
    c.mesh = dict(data=1, fsdp=1, tensor=1)
    c.log.tensorboard = False
    c.model.decoder.vocab = 1536
    c.processor.tokenizer.path = a.tokenizer or "workdir:tokenizer.model"
    if not a.tokenizer:
      words = dict(data=dict(sources=_sources(a, row)), fields=("prefix", "suffix"))
      c.prepare = dict(tokenizer=dict(words, examples=200, vocab_size=384))
    return c
  published = c.init.source
  npz = a.init.endswith(".npz")
  # The hub's tables have rows for padding, big_vision's do not; and the hub's Gemma 2 counts its
  # layers in pairs, of which a window hides nothing here either: big_vision trained without.
  c.model.decoder.vocab = 257_152 if npz else 257_216
  if size != "3b" and not npz:
    c.model.decoder.windows = (0, 0)
  c.processor.tokenizer.path = a.tokenizer or f"{published}/tokenizer.model"
  c.init.source = published.replace("-pt-", f"-{row['init']}-")
  c.mesh = dict(data=1, fsdp=-1, tensor=1)
  return c


def _sources(a, row):
  """The sources to train on."""
  return tuple(
    dict(_file(a, row, name), name=name, weight=weight, ops=_ops(a, row, True))
    for name, weight in row["train"]
  )


def _file(a, row, name):
  fields = ("image",) if row["suffix"] else ("image", "suffix")
  fields += () if row["prefix"] else ("prefix",)
  return dict(kind="jsonl", path=f"{a.data}/{a.task}/{name}.jsonl", fields=fields)


def _ops(a, row, train):
  """What makes `image`, `prefix` and `suffix` of a record."""
  out = []
  if row["images"] > 2:
    stride = a.stride or row["stride"]
    out.append(dict(op="frames", count=row["images"], stride=stride, random_start=train))
  if row["special"] == "box":
    out += [dict(op="resize", size=16 if a.tiny else a.res), dict(op="draw_box")]
  if row["special"] == "letters":
    out.append(dict(op="letter_choices", shuffle=train))
  for field in ("prefix", "suffix"):
    if row[field]:
      out.append(dict(op="template", to=field, pattern=row[field], sep=row["sep"]))
  if train:
    out.append(dict(op="choice"))
  elif row["score"] == "segmentation":
    out.append(dict(op="read_mask"))
  if row["lower"] == "both" or (row["lower"] == "eval" and not train):
    out.append(dict(op="lower"))
  return tuple(out)


def _evals(a, row):
  kind, _, score = row["score"].partition(":")
  extra = dict(score=score) if score else {}
  extra |= dict(beams=row["beams"]) if row["beams"] else {}
  if kind == "segmentation":
    extra["codec"] = a.codec or f"{a.data}/vae-oid.npz"
  return tuple(
    dict(
      name=name,
      kind=kind,
      max_new_tokens=8 if a.tiny else a.text_len or row["text_len"],
      data=dict(_file(a, row, name), name=name, ops=_ops(a, row, False)),
      **extra,
    )
    for name in row["val"] + (row["tests"] if a.tests else ())
  )


def table():
  """The rows in Markdown, for docs/transfers.md."""

  def cell(row, key, show=str):
    value = row[key]
    if isinstance(value, dict):
      value = [value[res] for res in row["res"]]
      return show(value[0]) if len(set(value)) == 1 else " / ".join(map(show, value))
    return show(value)

  def number(value):
    return f"{value:g}".replace("e-0", "e-") if value else "0"

  def line(name, row):
    length = f"{row['examples']:,} examples" if row["examples"] else cell(row, "epochs")
    length = length if row["lr"] else "scored only"
    notes = [f"smoothing {row['smoothing']:g}"] if row["smoothing"] else []
    notes += [f"dropout {cell(row, 'dropout', number)}"] if row["dropout"] else []
    frozen = row["freeze_vit"]
    where = [str(r) for r in row["res"] if frozen[r]] if isinstance(frozen, dict) else []
    notes += [f"frozen ViT{' at ' + ', '.join(where) if where else ''}"] if frozen else []
    if row["images"] > 2:
      notes.append(f"{row['images']} frames, stride {row['stride']}")
    elif row["images"] == 2:
      notes.append("2 images")
    special = {"": [], "box": ["box drawn"], "letters": ["choices shuffled"]}
    notes += special[row["special"]]
    notes += [f"lower case ({row['lower']})"] if row["lower"] else []
    notes += [f"{row['beams']} beams"] if row["beams"] else []
    notes += [row["optimizer"]] if row["optimizer"] != "adam" else []
    notes += [f"only `{pattern}`" for pattern in row["only"]]
    prefix = row["prefix"].replace("\n", "\\n") or "`prefix` of the record"
    cells = [
      f"`{name}`",
      "/".join(map(str, row["res"])),
      length,
      cell(row, "batch"),
      cell(row, "lr", number),
      cell(row, "wd", number),
      str(row["text_len"]),
      f"`{prefix}`" if row["prefix"] else prefix,
      row["score"].replace(":", " "),
      ", ".join(notes),
    ]
    return "| " + " | ".join(cells).rstrip() + " |"

  head = ("task", "res", "epochs", "batch", "lr", "decay", "text", "prefix", "score", "more")
  lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
  return "\n".join(lines + [line(name, row) for name, row in TASKS.items()])
