"""Directories with processors of the reference, and what it makes of images and texts.

Needs transformers and sentencepiece; no torch. `DIRECTORIES` maps a name to a function
(seed, folder) -> [(call, expected)]; a call is the arguments of the processor as JSON has them,
images by the names of `pictures(seed)`.
"""

import io
import json
import pathlib
from typing import Any

import numpy as np
from PIL import Image

SYLLABLES = "ba ce di fo gu la me ni po ru sa te vi xo zu kra ost ing der qua".split()
TEXTS = (
  "A photo of two cats, sitting on a mat!",
  "der  Hund   l\u00e4uft\n\n im Park; 12345 + 67",
  "",
  "\u732b \u3068 \u72ac \U0001f600 caf\u00e9 <loc0012> don't it's",
  "answer en what is this ?",
  " x",
)


def pictures(seed: int) -> dict[str, Image.Image]:
  """Images of all modes at odd sizes, smooth and noisy."""
  rng = np.random.default_rng(seed)

  def noise(h, w, c):
    coarse = rng.integers(0, 256, (h // 4 + 1, w // 4 + 1, c), np.uint8)
    fine = rng.integers(-20, 21, (h, w, c))
    return np.clip(np.kron(coarse, np.ones((4, 4, 1)))[:h, :w] + fine, 0, 255).astype(np.uint8)

  h, w = (int(n) for n in rng.integers(20, 60, 2))
  colour = Image.fromarray(noise(h, w, 3))
  palette = colour.convert("P", palette=Image.Palette.ADAPTIVE, colors=16)
  clear = palette.copy()
  clear.info["transparency"] = 3
  return {
    "rgb": colour,
    "wide": Image.fromarray(noise(23, 71, 3)),
    "tall": Image.fromarray(noise(67, 19, 3)),
    "tiny": Image.fromarray(noise(5, 9, 3)),
    "grey": Image.fromarray(noise(h, w + 1, 1)[..., 0]),
    "palette": palette,
    "clear": clear,
    "rgba": Image.fromarray(noise(h + 3, w, 4)),
    "la": Image.fromarray(noise(w, h, 2), mode="LA"),
    "bits": Image.fromarray(noise(31, 37, 1)[..., 0]).convert("1"),
  }


def corpus(seed: int) -> list[str]:
  """Sentences of invented words, with enough letters, digits and marks for a vocabulary."""
  rng = np.random.default_rng(seed)
  words = ["".join(rng.choice(SYLLABLES, rng.integers(1, 4))) for _ in range(150)]
  words += ["cats", "photo", "answer", "detect", "what", "this", "Park", "the", "12", "it's"]
  lines = [" ".join(rng.choice(words, rng.integers(3, 9))) for _ in range(400)]
  return [
    *lines,
    *TEXTS[:2],
    "abcdefghijklmnopqrstuvwxyz ABCDEFGHIJKLMNOPQRSTUVWXYZ 0123456789 ,.!?;",
  ]


def sentencepiece(seed: int, kind: str, **settings: Any) -> bytes:
  """A small sentencepiece model."""
  import sentencepiece as spm

  out = io.BytesIO()
  options = dict(vocab_size=300, hard_vocab_limit=False, minloglevel=2, num_threads=1)
  spm.SentencePieceTrainer.train(
    sentence_iterator=iter(corpus(seed)), model_writer=out, model_type=kind, **options | settings
  )
  return out.getvalue()


def write(folder: pathlib.Path, name: str, content: Any) -> None:
  """A JSON file of a directory."""
  (folder / name).write_text(json.dumps(content, indent=1), "utf-8")


_GEMMA_SPM = dict(
  kind="bpe", byte_fallback=True, vocab_size=700, pad_id=0, eos_id=1, bos_id=2, unk_id=3,
  unk_piece="<unk>", bos_piece="<bos>", eos_piece="<eos>", split_digits=True,
  normalization_rule_name="identity", add_dummy_prefix=False, remove_extra_whitespaces=False,
  allow_whitespace_only_pieces=True,
  user_defined_symbols=["<mask>", "<start_of_turn>", "<end_of_turn>", "\n", "\n\n", "  "],
)  # fmt: skip


def gemma_vocab(seed: int) -> tuple[dict[str, int], list[tuple[str, str]], bytes]:
  """Vocabulary and merges as the published tokenizer.json has them, and the model file."""
  import sentencepiece as spm

  data = sentencepiece(seed, **_GEMMA_SPM)
  model = spm.SentencePieceProcessor(model_proto=data)
  vocab = {model.id_to_piece(n): n for n in range(model.get_piece_size())}
  merges = [
    (piece[:at], piece[at:])
    for piece in vocab
    for at in range(1, len(piece))
    if piece[:at] in vocab and piece[at:] in vocab
  ]
  return vocab, merges, data


def _gemma(seed: int, cls: str = "GemmaTokenizer", **settings: Any):
  import transformers

  vocab, merges, _ = gemma_vocab(seed)
  made = getattr(transformers, cls)(vocab=vocab, merges=merges, **settings)
  made.add_tokens(
    [transformers.AddedToken(t, normalized=False) for t in ("\n", "\n\n", "  ")],
  )
  return made


def ids(tokenizer: Any, calls: list[dict[str, Any]]) -> list[tuple[dict, dict]]:
  """What a tokenizer makes of texts."""
  rows = []
  for call in calls:
    call = dict(call)
    out = tokenizer(
      call["text"], return_tensors="np", **{k: v for k, v in call.items() if k != "text"}
    )
    rows.append((call, {k: np.asarray(v) for k, v in out.items()}))
  return rows


_CALLS = [
  dict(text=list(TEXTS), padding=True),
  dict(text=list(TEXTS), padding="max_length", truncation=True, max_length=12),
  dict(text=[TEXTS[1]], padding=True, add_special_tokens=False),
  dict(text=list(TEXTS[:2]), padding=True, padding_side="left", pad_to_multiple_of=8),
]


def _reloaded(folder: pathlib.Path) -> Any:
  import transformers

  return transformers.AutoTokenizer.from_pretrained(folder)


def gemma(seed: int, folder: pathlib.Path):
  made = _gemma(seed, add_bos_token=True)
  made.chat_template = CHAT
  made.save_pretrained(folder)
  write(folder, "config.json", {"model_type": "gemma2"})
  return ids(_reloaded(folder), _CALLS)


def gemma_model_file(seed: int, folder: pathlib.Path):
  (folder / "tokenizer.model").write_bytes(gemma_vocab(seed)[2])
  write(folder, "config.json", {"model_type": "gemma"})
  named = dict(bos_token="<bos>", eos_token="<eos>", unk_token="<unk>", pad_token="<pad>")
  flags = dict(add_bos_token=True, add_eos_token=False, tokenizer_class="GemmaTokenizer")
  write(folder, "tokenizer_config.json", named | flags)
  return ids(_reloaded(folder), _CALLS)


def siglip2_text(seed: int, folder: pathlib.Path):
  _gemma(seed, add_eos_token=True, padding_side="right", model_max_length=64).save_pretrained(
    folder
  )
  write(folder, "config.json", {"model_type": "siglip2"})
  return ids(_reloaded(folder), _CALLS)


def _clip_vocab(seed: int) -> tuple[dict[str, int], list[tuple[str, str]]]:
  import tokenizers
  from tokenizers import models, pre_tokenizers, trainers

  made = tokenizers.Tokenizer(models.BPE(end_of_word_suffix="</w>"))
  made.pre_tokenizer = pre_tokenizers.Sequence(
    [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.ByteLevel(add_prefix_space=False)]
  )
  alphabet = pre_tokenizers.ByteLevel.alphabet()
  trainer = trainers.BpeTrainer(
    vocab_size=600, end_of_word_suffix="</w>", initial_alphabet=alphabet, show_progress=False
  )
  made.train_from_iterator((line.lower() for line in corpus(seed)), trainer)
  raw = json.loads(made.to_str())["model"]
  vocab = dict(raw["vocab"])
  for token in (*(a + "</w>" for a in sorted(alphabet)), "<|startoftext|>", "<|endoftext|>"):
    vocab.setdefault(token, len(vocab))
  return vocab, [tuple(pair) for pair in raw["merges"]]


def clip(seed: int, folder: pathlib.Path):
  import transformers

  vocab, merges = _clip_vocab(seed)
  transformers.CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=77).save_pretrained(
    folder
  )
  write(folder, "config.json", {"model_type": "clip"})
  return ids(_reloaded(folder), _CALLS)


def clip_vocab_files(seed: int, folder: pathlib.Path):
  vocab, merges = _clip_vocab(seed)
  write(folder, "vocab.json", vocab)
  lines = ["#version: 0.2", *(" ".join(pair) for pair in merges), ""]
  (folder / "merges.txt").write_text("\n".join(lines), "utf-8")
  write(folder, "config.json", {"model_type": "clip"})
  flags = {"normalized": True, "lstrip": False, "rstrip": False, "single_word": False}
  end, start = (
    {"__type": "AddedToken", "content": f"<|{w}oftext|>"} | flags for w in ("end", "start")
  )
  config = dict(
    bos_token=start, eos_token=end, unk_token=end, pad_token="<|endoftext|>", model_max_length=77,
    add_prefix_space=False, errors="replace", do_lower_case=True, tokenizer_class="CLIPTokenizer",
  )  # fmt: skip
  write(folder, "tokenizer_config.json", config)
  return ids(_reloaded(folder), _CALLS)


_T5_SPM = dict(kind="unigram", pad_id=0, eos_id=1, unk_id=2, bos_id=-1)


def t5(seed: int, folder: pathlib.Path):
  import transformers

  (folder / "spiece.model").write_bytes(sentencepiece(seed, **_T5_SPM))
  write(folder, "config.json", {"model_type": "t5"})
  made = transformers.AutoTokenizer.from_pretrained(folder)
  (folder / "spiece.model").unlink()
  made.save_pretrained(folder)
  return ids(_reloaded(folder), _CALLS)


def t5_model_file(seed: int, folder: pathlib.Path):
  (folder / "spiece.model").write_bytes(sentencepiece(seed, **_T5_SPM))
  write(folder, "config.json", {"model_type": "t5"})
  named = dict(eos_token="</s>", unk_token="<unk>", pad_token="<pad>", extra_ids=100)
  extra = [f"<extra_id_{i}>" for i in range(100)]
  config = named | dict(additional_special_tokens=extra, tokenizer_class="T5Tokenizer")
  write(folder, "tokenizer_config.json", config | dict(model_max_length=512))
  return ids(_reloaded(folder), _CALLS)


def siglip(seed: int, folder: pathlib.Path):
  (folder / "spiece.model").write_bytes(
    sentencepiece(
      seed, "unigram", pad_id=-1, bos_id=-1, eos_id=1, unk_id=2, control_symbols="<pad>"
    )
  )
  write(folder, "config.json", {"model_type": "siglip"})
  flags = {
    "lstrip": True,
    "normalized": False,
    "rstrip": True,
    "single_word": False,
    "special": True,
  }
  listed = {"1": {"content": "</s>"} | flags, "2": {"content": "<unk>"} | flags}
  config = dict(
    added_tokens_decoder=listed, additional_special_tokens=[], clean_up_tokenization_spaces=True,
    do_lower_case=True, eos_token="</s>", model_input_names=["input_ids"], model_max_length=64,
    pad_token="</s>", processor_class="SiglipProcessor", sp_model_kwargs={},
    tokenizer_class="SiglipTokenizer", unk_token="<unk>",
  )  # fmt: skip
  write(folder, "tokenizer_config.json", config)
  return ids(_reloaded(folder), _CALLS)


def xlm(seed: int, folder: pathlib.Path):
  (folder / "sentencepiece.bpe.model").write_bytes(sentencepiece(seed, "unigram"))
  write(folder, "config.json", {"model_type": "metaclip_2"})
  write(folder, "tokenizer_config.json", dict(tokenizer_class="XLMRobertaTokenizer"))
  import transformers

  data = folder / "sentencepiece.bpe.model"
  made = transformers.XLMRobertaTokenizer.from_pretrained(folder)
  data.unlink()
  made.save_pretrained(folder)
  return ids(_reloaded(folder), _CALLS)


def words(seed: int, folder: pathlib.Path):
  """A tokenizer of no class of its own, as its file says."""
  import tokenizers
  import transformers
  from tokenizers import models, normalizers, pre_tokenizers, processors, trainers

  made = tokenizers.Tokenizer(models.WordLevel(unk_token="[UNK]"))
  made.normalizer = normalizers.Lowercase()
  made.pre_tokenizer = pre_tokenizers.Whitespace()
  special = ["[PAD]", "[UNK]", "[BOS]", "[EOS]", "<image>"]
  trainer = trainers.WordLevelTrainer(vocab_size=90, special_tokens=special, show_progress=False)
  made.train_from_iterator(corpus(seed), trainer)
  made.post_processor = processors.TemplateProcessing(
    single="[BOS] $A [EOS]", special_tokens=[("[BOS]", 2), ("[EOS]", 3)]
  )
  transformers.PreTrainedTokenizerFast(
    tokenizer_object=made, bos_token="[BOS]", eos_token="[EOS]", unk_token="[UNK]",
    pad_token="[PAD]", padding_side="left", model_max_length=20,
    extra_special_tokens={"image_token": "<image>"},
  ).save_pretrained(folder)  # fmt: skip
  write(folder, "config.json", {"model_type": "clip"})
  return ids(_reloaded(folder), _CALLS)


CHAT = (
  "{{ bos_token }}{% if messages[0]['role'] == 'system' %}"
  "{{ raise_exception('no system turn') if messages[0]['content'] is not string }}"
  "{% endif %}\n{%- for message in messages %}\n"
  "  {%- if loop.index0 > 8 %}{% break %}{% endif %}\n"
  "  {{ '<start_of_turn>' + (message['role'] | replace('assistant', 'model')) + '\\n' -}}\n"
  "  {%- if message['content'] is string -%}\n"
  "    {% generation %}{{ message['content'] | trim }}{% endgeneration %}\n"
  "  {%- else -%}\n"
  "    {%- for item in message['content'] -%}\n"
  "      {%- if item['type'] == 'image' -%}{{ boi_token or '<start_of_image>' }}\n"
  "      {%- else -%}{{ item['text'] | tojson(indent=1) }}{%- endif -%}\n"
  "    {%- endfor -%}\n"
  "  {%- endif -%}\n"
  "  {{ '<end_of_turn>\\n' }}\n"
  "{%- endfor -%}\n"
  "{%- if add_generation_prompt -%}{{ '<start_of_turn>model\\n' }}{%- endif -%}\n"
)
CHATS = (
  dict(messages=[{"role": "user", "content": " Hi <b> "}], add_generation_prompt=True),
  dict(
    messages=[
      {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "\u00e9 & 'x'"}]},
      {"role": "assistant", "content": "a mat", "tool_calls": None},
    ]
  ),
)


def _saved_images(folder: pathlib.Path, cls: str, old: bool, **settings: Any) -> Any:
  """An image processor of the reference (its Pillow class), written in either style."""
  import transformers

  made = getattr(transformers, cls + "Pil")(**settings)
  made.save_pretrained(folder)
  path = folder / "preprocessor_config.json"
  content = json.loads(path.read_text())
  if old:
    content.pop("image_processor_type")
    content["feature_extractor_type"] = cls.replace("ImageProcessor", "FeatureExtractor")
    for key in ("size", "crop_size"):
      if isinstance(settings.get(key), int):
        content[key] = settings[key]
  write(folder, path.name, content)
  return made


_SIDES = {"height": 20, "width": 14}
IMAGES: dict[str, tuple[str, bool, dict[str, Any]]] = {
  "clip": ("CLIPImageProcessor", False, dict(size={"shortest_edge": 18}, crop_size=_SIDES)),
  "clip_old": ("CLIPImageProcessor", True, dict(size=17, crop_size=15)),
  "siglip": ("SiglipImageProcessor", False, dict(size=_SIDES, resample=3)),
  "lanczos": ("SiglipImageProcessor", False, dict(size=_SIDES, resample=1, do_convert_rgb=True)),
  "vit": ("ViTImageProcessor", True, dict(size=19, do_convert_rgb=True)),
  "dinov2": (
    "BitImageProcessor", False,
    dict(size={"shortest_edge": 16}, crop_size=20, image_mean=[0.485, 0.456, 0.406],
         image_std=[0.229, 0.224, 0.225]),
  ),
  "longest": (
    "BitImageProcessor", False,
    dict(size={"shortest_edge": 16, "longest_edge": 24}, crop_size=_SIDES),
  ),
  "convnext": (
    "ConvNextImageProcessor", False,
    dict(size={"shortest_edge": 21}, crop_pct=0.8, do_convert_rgb=True),
  ),
  "filled": (
    "SiglipImageProcessor", False,
    dict(size={"max_height": 23, "max_width": 31}, do_pad=True, pad_size=[25, 31]),
  ),
  "gemma3": (  # It has no centre crop, whatever its file says.
    "Gemma3ImageProcessor", False, dict(size=_SIDES, do_center_crop=True, crop_size=11),
  ),
  "naflex": ("Siglip2ImageProcessor", False, dict(patch_size=4, max_num_patches=22)),
}  # fmt: skip


def image_directory(name: str):
  """A function as in `DIRECTORIES` for one of `IMAGES`."""
  cls, old, settings = IMAGES[name]

  def make(seed: int, folder: pathlib.Path):
    made = _saved_images(folder, cls, old, **settings)
    there = pictures(seed)
    calls: list[dict[str, Any]] = [dict(images=list(there), do_convert_rgb=True)]
    if name == "gemma3":
      pan = dict(do_pan_and_scan=True, pan_and_scan_min_crop_size=9, pan_and_scan_max_num_crops=4)
      calls.append(dict(images=list(there), **pan, pan_and_scan_min_ratio_to_activate=1.2))
    rows = []
    for call in calls:
      given = [there[one] for one in call["images"]]
      rest = {k: v for k, v in call.items() if k != "images"}
      out = made(given, return_tensors="np", **(rest | {"do_convert_rgb": True}))
      rest.pop("do_convert_rgb", None)
      rows.append((dict(images=call["images"], **rest), {k: np.asarray(v) for k, v in out.items()}))
    return rows

  return make


def _call(processor: Any, there: dict[str, Image.Image], call: dict[str, Any]) -> tuple[dict, dict]:
  def filled(x):
    return there[x] if isinstance(x, str) else [filled(one) for one in x]

  given = dict(call)
  if "images" in given:
    given["images"] = filled(given["images"])
  out = processor(return_tensors="np", **given)
  return call, {k: np.asarray(v) for k, v in out.items()}


def paligemma(seed: int, folder: pathlib.Path):
  import transformers

  extra = [f"<loc{i:04d}>" for i in range(1024)] + [f"<seg{i:03d}>" for i in range(128)]
  tokenizer = _gemma(seed, add_bos_token=True)
  tokenizer.add_tokens(extra)
  pixels = transformers.SiglipImageProcessorPil(size=_SIDES, do_convert_rgb=True)
  pixels.image_seq_length = 6
  made = transformers.PaliGemmaProcessor(pixels, tokenizer)
  tokenizer.save_pretrained(folder)
  pixels.save_pretrained(folder)
  path = folder / "preprocessor_config.json"
  content = json.loads(path.read_text()) | dict(image_seq_length=6)
  write(folder, path.name, content | dict(processor_class="PaliGemmaProcessor"))
  write(folder, "config.json", {"model_type": "paligemma"})
  there = pictures(seed)
  calls = [
    dict(images=["rgb"], text=["caption en"], padding=True),
    dict(images=["rgb", "wide"], text=["detect cat ; dog", "ocr"], padding=True),
    dict(
      images=["rgb", "wide"],
      text=["detect cat ; dog", "answer en what"],
      suffix=["<loc0001><loc0512><loc1023><loc0007> cat", "<seg005> two cats"],
      padding=True,
    ),
    dict(
      images=[["rgb", "tall"], ["grey"]],
      text=["<image><image>caption en", "<image>segment x"],
      padding="max_length",
      max_length=40,
    ),
    dict(images=[["rgb", "tall"], ["rgba"]], text=["caption en", "ocr"], padding=True),
    dict(images=["la", "clear"], text=["<image>a", "<image>b"], padding=True, padding_side="right"),
  ]
  return [_call(made, there, call) for call in calls]


def gemma3_processor(seed: int, folder: pathlib.Path):
  import transformers

  named = dict(boi_token="<start_of_image>", eoi_token="<end_of_image>")
  named["image_token"] = "<image_soft_token>"
  tokenizer = _gemma(seed, add_bos_token=True, extra_special_tokens=named)
  tokenizer.chat_template = CHAT
  tokenizer.save_pretrained(folder)
  tokenizer = _reloaded(folder)
  pixels = transformers.Gemma3ImageProcessorPil(size=_SIDES)
  made = transformers.Gemma3Processor(pixels, tokenizer, image_seq_length=5, chat_template=CHAT)
  made.save_pretrained(folder)
  write(folder, "config.json", {"model_type": "gemma3"})
  there = pictures(seed)
  mark = "<start_of_image>"
  calls = [
    dict(images=[["rgb"]], text=[f"{mark} what is this"], padding=True),
    dict(images=[["rgb", "wide"], ["tall"]], text=[f"a {mark}, {mark}", f"{mark}b"], padding=True),
    dict(text=["no image here", TEXTS[1]], padding=True),
    dict(
      images=[["wide"], ["tall"]],
      text=[f"{mark} x", f"y {mark}"],
      padding=True,
      do_pan_and_scan=True,
      pan_and_scan_min_crop_size=9,
    ),
    dict(images=[["rgb"], ["grey", "rgba"]], padding=True),
  ]
  return [_call(made, there, call) for call in calls]


def siglip2_processor(seed: int, folder: pathlib.Path):
  import transformers

  siglip2_text(seed, folder)
  pixels = transformers.Siglip2ImageProcessorPil(patch_size=4, max_num_patches=9)
  made = transformers.Siglip2Processor(pixels, _reloaded(folder))
  made.save_pretrained(folder)
  write(folder, "config.json", {"model_type": "siglip2"})
  there = pictures(seed)
  calls = [
    dict(images=["rgb", "wide"], text=["A Cat", TEXTS[1]], patch_size=4, max_num_patches=20),
    dict(text=list(TEXTS)),
  ]
  return [_call(made, there, call) for call in calls]


DIRECTORIES: dict[str, Any] = {
  "gemma": gemma,
  "gemma_model_file": gemma_model_file,
  "siglip2_text": siglip2_text,
  "clip": clip,
  "clip_vocab_files": clip_vocab_files,
  "t5": t5,
  "t5_model_file": t5_model_file,
  "siglip": siglip,
  "words": words,
  "xlm": xlm,
  "paligemma": paligemma,
  "gemma3": gemma3_processor,
  "siglip2": siglip2_processor,
  **{f"image_{name}": image_directory(name) for name in IMAGES},
}


def decoded(folder: pathlib.Path, seed: int) -> list[tuple[list[int], str, str]]:
  """Random ids of a directory's tokenizer, and their text without and with special tokens."""
  tokenizer = _reloaded(folder)
  rng = np.random.default_rng(seed)
  rows = []
  for _ in range(6):
    numbers = [int(n) for n in rng.integers(0, min(len(tokenizer), 700), 9)]
    texts = (tokenizer.decode(numbers, skip_special_tokens=skip) for skip in (True, False))
    rows.append((numbers, *texts))
  return rows


def chats(folder: pathlib.Path) -> list[tuple[dict[str, Any], str]]:
  """Conversations in the reference's rendering."""
  tokenizer = _reloaded(folder)
  return [
    (call, tokenizer.apply_chat_template(
      call["messages"],
      tokenize=False,
      add_generation_prompt=call.get("add_generation_prompt", False),
    ))
    for call in CHATS
  ]  # fmt: skip
