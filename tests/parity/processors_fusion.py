"""Directories with the reference's processors of models that put media into their text.

Needs torch, torchvision, transformers and num2words. `DIRECTORIES` as in `processors_reference`;
`videos(seed)` are the videos that calls name.
"""

import pathlib
from typing import Any

import numpy as np

from tests.parity import processors_reference as reference
from tests.parity.processors_reference import write

_SPECIAL = ["<pad>", "<s>", "</s>", "<unk>"]
_TEXT = "\u00e9 what's on\n it?"


def videos(seed: int) -> dict[str, np.ndarray]:
  """uint8 [T, H, W, 3] of several sizes; some frames are alike."""
  rng = np.random.default_rng(seed)

  def smooth(frames: int, height: int, width: int) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    rows = []
    for n in range(frames):
      waves = [np.sin((y * a + x * b) / 9 + n * c) for a, b, c in rng.uniform(0.2, 1.5, (3, 3))]
      rows.append(np.stack(waves, axis=-1) * 100 + 127)
    return np.stack(rows).astype(np.uint8)

  still = smooth(5, 30, 42)
  still[2] = still[1]
  still[3, :10] = still[2, :10]
  return {"short": smooth(4, 25, 37), "tall": smooth(4, 41, 22), "still": still}


def bytes_tokenizer(seed: int, folder: pathlib.Path, more: list[str], cls: str = "", **named: Any):
  """A small byte-level tokenizer with special tokens, saved in a directory and read again."""
  import tokenizers
  import transformers
  from tokenizers import decoders, models, pre_tokenizers, processors, trainers

  made = tokenizers.Tokenizer(models.BPE())
  made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
  made.decoder = decoders.ByteLevel()
  special = [*_SPECIAL, *more]
  trainer = trainers.BpeTrainer(
    vocab_size=300 + len(special), special_tokens=special, show_progress=False,
    initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
  )  # fmt: skip
  made.train_from_iterator(reference.corpus(seed), trainer)
  if not cls:
    made.post_processor = processors.TemplateProcessing(
      single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)]
    )
  ends = dict(bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="<pad>") | named
  if cls:
    raw = reference.json.loads(made.to_str())["model"]
    merges = [tuple(m) for m in raw["merges"]]
    tokenizer = getattr(transformers, cls)(vocab=raw["vocab"], merges=merges, **ends)
    tokenizer.add_tokens([transformers.AddedToken(t, special=True) for t in special])
  else:
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=made, **ends)
  tokenizer.save_pretrained(folder)
  return transformers.AutoTokenizer.from_pretrained(folder)


def _llama_vocab(seed: int) -> tuple[dict[str, int], list[tuple[str, str]]]:
  import sentencepiece as spm

  data = reference.sentencepiece(
    seed, "bpe", byte_fallback=True, vocab_size=560, unk_id=0, bos_id=1, eos_id=2, pad_id=-1,
    normalization_rule_name="identity",
  )  # fmt: skip
  model = spm.SentencePieceProcessor(model_proto=data)
  vocab = {model.id_to_piece(n): n for n in range(model.get_piece_size())}
  merges = [
    (piece[:at], piece[at:])
    for piece in vocab
    for at in range(1, len(piece))
    if piece[:at] in vocab and piece[at:] in vocab
  ]
  return vocab, merges


def llama_tokenizer(seed: int, folder: pathlib.Path, more: list[str], **named: Any):
  """A small tokenizer as Llama 2's, saved in a directory and read again."""
  import transformers

  vocab, merges = _llama_vocab(seed)
  made = transformers.LlamaTokenizer(vocab=vocab, merges=merges, add_bos_token=True, **named)
  made.add_tokens([transformers.AddedToken(t, special=True, normalized=False) for t in more])
  made.save_pretrained(folder)
  return transformers.AutoTokenizer.from_pretrained(folder)


def unigram_tokenizer(seed: int, folder: pathlib.Path, more: list[str]):
  """As Fuyu's: its marks are pieces like others, and a space stands in front of every text."""
  import sentencepiece as spm
  import tokenizers
  import transformers
  from tokenizers import decoders, models, normalizers

  data = reference.sentencepiece(
    seed, "unigram", byte_fallback=True, vocab_size=560, unk_id=0, bos_id=1, eos_id=2, pad_id=-1,
    normalization_rule_name="identity", user_defined_symbols=more,
  )  # fmt: skip
  model = spm.SentencePieceProcessor(model_proto=data)
  pieces = [(model.id_to_piece(n), model.get_score(n)) for n in range(model.get_piece_size())]
  made = tokenizers.Tokenizer(models.Unigram(pieces, 0, byte_fallback=True))
  space = "\u2581"
  made.normalizer = normalizers.Sequence(
    [normalizers.Prepend(space), normalizers.Replace(" ", space)]
  )
  made.decoder = decoders.Sequence(
    [decoders.Replace(space, " "), decoders.ByteFallback(), decoders.Fuse()]
  )
  ends = dict(bos_token="<s>", eos_token="</s>", unk_token="<unk>")
  transformers.PreTrainedTokenizerFast(tokenizer_object=made, **ends).save_pretrained(folder)
  return transformers.AutoTokenizer.from_pretrained(folder)


def _rows(processor: Any, calls: list[dict[str, Any]], seed: int) -> list[tuple[dict, dict]]:
  """What a processor makes of calls; images and videos by their names."""
  there, films = reference.pictures(seed), videos(seed)

  def filled(x: Any, known: dict[str, Any]) -> Any:
    return known[x] if isinstance(x, str) else [filled(one, known) for one in x]

  rows = []
  for call in calls:
    given = dict(call)
    if "images" in given and processor.__class__.__name__ != "InstructBlipVideoProcessor":
      given["images"] = filled(given["images"], there)
    elif "images" in given:
      given["images"] = filled(given["images"], films)
    if "videos" in given:
      given["videos"] = filled(given["videos"], films)
    kind = given.pop("return_tensors", "np")
    out = processor(return_tensors=kind, **given)
    rows.append((call, {k: np.asarray(v) for k, v in out.items() if v is not None}))
  return rows


def _typed(folder: pathlib.Path, kind: str) -> None:
  """Says the type of the model, which decides about the tokenizer's class."""
  write(folder, "config.json", {"model_type": kind})


_GRIDS = [[20, 40], [40, 20], [40, 40], [60, 20], [20, 60]]
_SIDE = dict(height=20, width=20)


def llava(seed: int, folder: pathlib.Path, width: int = 25):
  import transformers

  _typed(folder, "llava")
  named = {"image_token": "<image>"}
  tokenizer = bytes_tokenizer(seed, folder, ["<image>"], extra_special_tokens=named)
  pixels = transformers.CLIPImageProcessorPil(
    size={"shortest_edge": 20}, crop_size={"height": 20, "width": width}
  )
  made = transformers.LlavaProcessor(
    pixels, tokenizer, patch_size=5, vision_feature_select_strategy="default",
    num_additional_image_tokens=1, chat_template=reference.CHAT,
  )  # fmt: skip
  made.save_pretrained(folder)
  return made, [
    dict(images=["rgb"], text=["USER: <image>\nwhat? ASSISTANT:"], padding=True),
    dict(images=["rgb", "wide", "la"], text=["a <image> b <image>", f"<image>{_TEXT}"],
         padding=True, padding_side="left"),
    dict(text=["no image", _TEXT], padding=True),
  ]  # fmt: skip


def llava_square(seed: int, folder: pathlib.Path):
  import transformers

  _typed(folder, "llava")
  tokenizer = llama_tokenizer(seed, folder, ["<image>", "<pad>"], pad_token="<pad>")
  pixels = transformers.LlavaImageProcessorPil(size=_SIDE, do_center_crop=False, do_pad=True)
  made = transformers.LlavaProcessor(
    pixels, tokenizer, patch_size=4, vision_feature_select_strategy="full"
  )
  made.save_pretrained(folder)
  texts = [f"<image>{_TEXT}", "x<image> y"]
  return made, [dict(images=["rgb", "tall"], text=texts, padding=True)]


def llava_next(seed: int, folder: pathlib.Path):
  import transformers

  _typed(folder, "llava_next")
  tokenizer = bytes_tokenizer(seed, folder, ["<image>"])
  pixels = transformers.LlavaNextImageProcessorPil(
    size={"shortest_edge": 20}, crop_size=_SIDE, image_grid_pinpoints=_GRIDS
  )
  made = transformers.LlavaNextProcessor(
    pixels, tokenizer, patch_size=5, vision_feature_select_strategy="default",
    num_additional_image_tokens=1,
  )  # fmt: skip
  made.save_pretrained(folder)
  return made, [
    dict(images=["wide", "tall", "rgb"], text=["<image> a <image>", "<image>"], padding=True),
    dict(images=[["tiny"]], text=[_TEXT + "<image>"], padding=True),
  ]  # fmt: skip


def llava_next_video(seed: int, folder: pathlib.Path):
  import transformers

  _typed(folder, "llava_next_video")
  tokenizer = llama_tokenizer(seed, folder, ["<image>", "<video>", "<pad>"], pad_token="<pad>")
  sides = dict(size={"shortest_edge": 20}, crop_size=_SIDE)
  made = transformers.LlavaNextVideoProcessor(
    video_processor=transformers.LlavaNextVideoVideoProcessor(**sides),
    image_processor=transformers.LlavaNextImageProcessorPil(**sides, image_grid_pinpoints=_GRIDS),
    tokenizer=tokenizer, patch_size=5, vision_feature_select_strategy="default",
    num_additional_image_tokens=1,
  )  # fmt: skip
  made.save_pretrained(folder)
  return made, [
    dict(videos=["short", "tall"], text=["<video> a", f"b <video>{_TEXT}"], padding=True),
    dict(images=["wide"], videos=["short"], text=["<image> a <video>"], padding=True),
  ]  # fmt: skip


def video_llava(seed: int, folder: pathlib.Path):
  import transformers

  _typed(folder, "video_llava")
  tokenizer = llama_tokenizer(seed, folder, ["<image>", "<video>", "<pad>"], pad_token="<pad>")
  sides = dict(size={"shortest_edge": 20}, crop_size=_SIDE)
  made = transformers.VideoLlavaProcessor(
    image_processor=transformers.VideoLlavaImageProcessor(**sides),
    video_processor=transformers.VideoLlavaVideoProcessor(**sides),
    tokenizer=tokenizer, patch_size=5,
  )  # fmt: skip
  made.save_pretrained(folder)
  return made, [
    dict(videos=["short", "tall"], text=["<video> a", "b <video>"], padding=True),
    dict(images=["wide"], videos=["short"], text=["<image> a <video>"], padding=True),
  ]  # fmt: skip


def llava_onevision(seed: int, folder: pathlib.Path):
  import transformers

  _typed(folder, "llava_onevision")
  tokenizer = bytes_tokenizer(
    seed, folder, ["<image>", "<video>"], "Qwen2Tokenizer",
    extra_special_tokens={"image_token": "<image>", "video_token": "<video>"},
  )  # fmt: skip
  grids = [[20 * a, 20 * b] for a in range(1, 4) for b in range(1, 4)]
  made = transformers.LlavaOnevisionProcessor(
    transformers.LlavaOnevisionImageProcessorPil(size=_SIDE, image_grid_pinpoints=grids),
    tokenizer, transformers.LlavaOnevisionVideoProcessor(size=_SIDE),
    num_image_tokens=25, vision_feature_select_strategy="full",
    vision_aspect_ratio="anyres_max_2", chat_template=reference.CHAT,
  )  # fmt: skip
  made.save_pretrained(folder)
  return made, [
    dict(images=["wide", "tall"], text=["<image> a", "<image>"], padding=True),
    dict(images=[["wide", "rgb"], ["tall"]], text=["<image> a<image>", f"<image>{_TEXT}"],
         padding=True),
    dict(videos=["short", "tall"], text=["<video> a", "b <video>"], padding=True),
  ]  # fmt: skip


def internvl(seed: int, folder: pathlib.Path):
  import transformers

  _typed(folder, "internvl")
  named = dict(
    start_image_token="<img>", end_image_token="</img>", context_image_token="<IMG_CONTEXT>",
    video_token="<video>",
  )  # fmt: skip
  tokenizer = bytes_tokenizer(
    seed, folder, list(named.values()), "Qwen2Tokenizer", extra_special_tokens=named
  )
  made = transformers.InternVLProcessor(
    transformers.GotOcr2ImageProcessorPil(size=_SIDE, min_patches=1, max_patches=5),
    tokenizer, transformers.InternVLVideoProcessor(size=_SIDE), image_seq_length=4,
  )  # fmt: skip
  made.save_pretrained(folder)
  mark = "<IMG_CONTEXT>"
  return made, [
    dict(images=["wide", "tall", "rgb"], text=[f"{mark} a {mark}", f"{mark}{_TEXT}"], padding=True),
    dict(images=["tiny"], videos=["short"], text=[f"<video>\n{mark} b"], padding=True,
         return_tensors="pt"),
    dict(images=[["wide"]], text=[mark], padding=True, crop_to_patches=False),
    dict(images=["wide"], videos=["tall"], text=[f"{mark} x", "<video>"], padding=True,
         num_frames=2, do_sample_frames=True, return_tensors="pt"),
  ]  # fmt: skip


def idefics(seed: int, folder: pathlib.Path):
  import transformers

  _typed(folder, "idefics")
  tokens = ["<fake_token_around_image>", "<image>", "<end_of_utterance>", "<pad>"]
  tokenizer = llama_tokenizer(seed, folder, tokens, pad_token="<pad>")
  made = transformers.IdeficsProcessor(
    transformers.IdeficsImageProcessorPil(image_size=20), tokenizer
  )
  made.save_pretrained(folder)
  return made, [
    dict(images=["wide", "rgb"], text=["what is it?", _TEXT], return_tensors="pt"),
    dict(images=[["wide", "tall"], ["rgb"]], text=["User: a ", " b"], return_tensors="pt"),
    dict(text=[["no image"], ["at all, ", "none"]], return_tensors="pt"),
  ]  # fmt: skip


def idefics2(seed: int, folder: pathlib.Path):
  import transformers

  _typed(folder, "idefics2")
  tokenizer = llama_tokenizer(seed, folder, ["<pad>"], pad_token="<pad>")
  pixels = transformers.Idefics2ImageProcessorPil(
    size={"shortest_edge": 16, "longest_edge": 40}, do_image_splitting=bool(seed % 2)
  )
  made = transformers.Idefics2Processor(pixels, tokenizer, image_seq_len=3)
  made.save_pretrained(folder)
  return made, [
    dict(images=[["wide", "tall"], ["rgb"]], text=["<image><image>a b", f"x <image>{_TEXT}"],
         padding=True),
    dict(images=["tiny", "la"], text=["<image> a", "<image>"], padding=True),
  ]  # fmt: skip


def _tags() -> list[str]:
  tags = [f"<row_{r}_col_{c}>" for r in range(1, 7) for c in range(1, 7)]
  return ["<fake_token_around_image>", "<image>", "<end_of_utterance>", "<global-img>", *tags]


def idefics3(seed: int, folder: pathlib.Path):
  import transformers

  _typed(folder, "idefics3")
  tokenizer = bytes_tokenizer(seed, folder, _tags())
  pixels = transformers.Idefics3ImageProcessorPil(
    size={"longest_edge": 45}, max_image_size={"longest_edge": 20}
  )
  made = transformers.Idefics3Processor(pixels, tokenizer, image_seq_len=4)
  made.save_pretrained(folder)
  return made, [
    dict(images=[["wide", "tall"], ["tiny"]], text=["<image>a<image> b", f"x <image>{_TEXT}"],
         padding=True),
    dict(images=["rgb", "la"], text=["<image> a", "<image>"], padding=True,
         do_image_splitting=False),
    dict(text=["no image", _TEXT], padding=True),
  ]  # fmt: skip


def smolvlm(seed: int, folder: pathlib.Path):
  import transformers

  _typed(folder, "smolvlm")
  tokenizer = bytes_tokenizer(
    seed, folder, [*_tags(), "<video>"], extra_special_tokens={"image_token": "<image>"}
  )
  sides = dict(size={"longest_edge": 45}, max_image_size={"longest_edge": 20})
  made = transformers.SmolVLMProcessor(
    transformers.SmolVLMImageProcessorPil(**sides), tokenizer,
    transformers.SmolVLMVideoProcessor(**sides, num_frames=3, fps=1), image_seq_len=4,
  )  # fmt: skip
  made.save_pretrained(folder)
  film = dict(total_num_frames=5, fps=0.5, duration=10.0)
  return made, [
    dict(images=[["wide", "tall"], ["tiny"]], text=["<image>a<image> b", "x <image>"],
         padding=True),
    dict(videos=["short", "tall"], text=["<video> a", "b <video>"], padding=True),
    dict(videos=["still"], text=["<video>"], padding=True, do_sample_frames=True,
         video_metadata=[film]),
  ]  # fmt: skip


def _qwen(seed: int, folder: pathlib.Path) -> Any:
  tokens = ["<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]
  named = {"image_token": tokens[2], "video_token": tokens[3]} if seed % 2 else {}
  return bytes_tokenizer(
    seed, folder, tokens, "Qwen2Tokenizer", extra_special_tokens=named, bos_token=None
  )


_PIXELS = {"shortest_edge": 16 * 16, "longest_edge": 32 * 32}


def qwen2_vl(seed: int, folder: pathlib.Path):
  import transformers

  _typed(folder, "qwen2_vl")
  sides = dict(size=_PIXELS, patch_size=4, temporal_patch_size=2, merge_size=2)
  made = transformers.Qwen2VLProcessor(
    transformers.Qwen2VLImageProcessorPil(**sides), _qwen(seed, folder),
    transformers.Qwen2VLVideoProcessor(**sides), chat_template=reference.CHAT,
  )  # fmt: skip
  made.save_pretrained(folder)
  image, video = "<|vision_start|><|image_pad|><|vision_end|>", "<|video_pad|>"
  return made, [
    dict(images=["wide", "tall", "rgb"], text=[f"{image} a {image}", f"{image}{_TEXT}"],
         padding=True),
    dict(images=["tiny"], videos=["short", "still"], text=[f"{video}{image}", f"b {video}"],
         padding=True, padding_side="left"),
    dict(videos=["still"], text=[video], padding=True, num_frames=4, do_sample_frames=True),
    dict(images=["wide"], text=[image], padding=True, min_pixels=64, max_pixels=300),
  ]  # fmt: skip


def qwen2_5_vl(seed: int, folder: pathlib.Path):
  import transformers

  _typed(folder, "qwen2_5_vl")
  sides = dict(min_pixels=16 * 16, max_pixels=32 * 32, patch_size=4)
  made = transformers.Qwen2_5_VLProcessor(
    transformers.Qwen2VLImageProcessorPil(**sides), _qwen(seed, folder),
    transformers.Qwen2VLVideoProcessor(**sides, cap_pixels_per_frame=True, max_video_tokens=20),
  )  # fmt: skip
  made.save_pretrained(folder)
  film = dict(total_num_frames=5, fps=2.0, duration=2.5)
  return made, [
    dict(images=["wide"], videos=["short"], text=["<|image_pad|> a <|video_pad|>"], padding=True),
    dict(videos=["still", "tall"], text=["<|video_pad|><|video_pad|>"], padding=True, fps=1,
         do_sample_frames=True, min_frames=2,
         video_metadata=[film, film | dict(total_num_frames=4)]),
  ]  # fmt: skip


def video_llama_3(seed: int, folder: pathlib.Path):
  import transformers

  _typed(folder, "video_llama_3")
  sides = dict(size=_PIXELS, patch_size=4)
  films = dict(size={"shortest_edge": 16 * 16, "longest_edge": 5 * 32 * 32}, patch_size=4)
  made = transformers.VideoLlama3Processor(
    transformers.VideoLlama3ImageProcessorPil(**sides), _qwen(seed, folder),
    transformers.VideoLlama3VideoProcessor(**films),
  )  # fmt: skip
  made.save_pretrained(folder)
  film = dict(total_num_frames=5, fps=2.0, duration=2.5, frames_indices=[0, 1, 2, 3, 4])
  return made, [
    dict(images=["wide", "rgb"], videos=["short"], padding=True, return_tensors="pt",
         text=["<|image_pad|> a <|video_pad|>", "<|image_pad|>"]),
    dict(videos=["still"], text=["<|video_pad|>"], padding=True, video_metadata=[film],
         return_tensors="pt"),
    dict(videos=["still"], text=["<|video_pad|>"], padding=True, use_token_compression=False,
         return_tensors="pt"),
  ]  # fmt: skip


def mllama(seed: int, folder: pathlib.Path):
  import transformers

  _typed(folder, "mllama")
  tokenizer = bytes_tokenizer(seed, folder, ["<|image|>", "<|python_tag|>"])
  pixels = transformers.MllamaImageProcessorPil(size=_SIDE, max_image_tiles=4)
  made = transformers.MllamaProcessor(pixels, tokenizer)
  made.save_pretrained(folder)
  mark = "<|image|>"
  return made, [
    dict(images=[["wide", "tall"], ["rgb"]], text=[f"{mark}{mark}a b", f"x {mark}{_TEXT}"],
         padding=True, add_special_tokens=False),
    dict(images=[["wide", "tiny", "tall"], []], text=[f"{mark} a{mark}{mark} c", "nothing here"],
         padding=True, padding_side="left", add_special_tokens=False),
    dict(text=["no image", _TEXT], padding=True, add_special_tokens=False),
  ]  # fmt: skip


def pixtral(seed: int, folder: pathlib.Path):
  import transformers

  _typed(folder, "pixtral")
  tokenizer = bytes_tokenizer(seed, folder, ["[IMG]", "[IMG_BREAK]", "[IMG_END]"])
  pixels = transformers.PixtralImageProcessorPil(size={"longest_edge": 40}, patch_size=4)
  merge = 1 + seed % 2
  made = transformers.PixtralProcessor(pixels, tokenizer, patch_size=4, spatial_merge_size=merge)
  made.save_pretrained(folder)
  return made, [
    dict(images=["wide", "tall", "tiny"], text=["[IMG] a [IMG]", f"[IMG]{_TEXT}"], padding=True),
    dict(images=[["rgb"]], text=["b[IMG]"], padding=True),
  ]  # fmt: skip


def blip2(seed: int, folder: pathlib.Path):
  import transformers

  _typed(folder, "blip-2")
  tokenizer = bytes_tokenizer(seed, folder, [], "GPT2Tokenizer", add_bos_token=True)
  pixels = transformers.BlipImageProcessorPil(size=_SIDE)
  made = transformers.Blip2Processor(pixels, tokenizer, num_query_tokens=3)
  made.save_pretrained(folder)
  return made, [
    dict(images=["wide", "rgb"], text=["a photo of", _TEXT], padding=True),
    dict(images=["wide", "rgb"], text=["a photo of", _TEXT], padding="max_length", max_length=12,
         truncation=True),
    dict(images=["tall"]),
    dict(text=["no image"], padding=True),
  ]  # fmt: skip


def _bert(seed: int) -> Any:
  import tokenizers
  import transformers
  from tokenizers import models, normalizers, pre_tokenizers, trainers

  special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
  made = tokenizers.Tokenizer(models.WordPiece(unk_token="[UNK]"))
  made.normalizer = normalizers.BertNormalizer()
  made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
  trainer = trainers.WordPieceTrainer(vocab_size=160, special_tokens=special, show_progress=False)
  made.train_from_iterator(reference.corpus(seed), trainer)
  return transformers.BertTokenizer(vocab=made.get_vocab())


def instructblip(seed: int, folder: pathlib.Path):
  import transformers

  _typed(folder, "instructblip")
  tokenizer = llama_tokenizer(seed, folder, ["<pad>"], pad_token="<pad>")
  pixels = transformers.BlipImageProcessorPil(size=_SIDE)
  made = transformers.InstructBlipProcessor(pixels, tokenizer, _bert(seed), num_query_tokens=3)
  made.save_pretrained(folder)
  return made, [
    dict(images=["wide", "rgb"], text=["a photo of", _TEXT], padding=True),
    dict(text=["no image"], padding=True),
  ]  # fmt: skip


def instructblipvideo(seed: int, folder: pathlib.Path):
  import transformers

  _typed(folder, "instructblipvideo")
  tokenizer = llama_tokenizer(seed, folder, ["<pad>"], pad_token="<pad>")
  films = transformers.InstructBlipVideoVideoProcessor(size=_SIDE)
  made = transformers.InstructBlipVideoProcessor(films, tokenizer, _bert(seed), num_query_tokens=3)
  made.save_pretrained(folder)
  return made, [
    dict(images=["short", "tall"], text=["a photo of", _TEXT], padding=True),
    dict(text=["no image"], padding=True),
  ]  # fmt: skip


def deepseek_vl(seed: int, folder: pathlib.Path, hybrid: bool = False):
  import transformers

  _typed(folder, "deepseek_vl_hybrid" if hybrid else "deepseek_vl")
  mark = "<image_placeholder>"
  tokenizer = bytes_tokenizer(seed, folder, [mark], extra_special_tokens={"image_token": mark})
  kind = "DeepseekVLHybrid" if hybrid else "DeepseekVL"
  more = dict(high_res_size=dict(height=33, width=33)) if hybrid else {}
  pixels = getattr(transformers, f"{kind}ImageProcessorPil")(size=_SIDE, min_size=6, **more)
  made = getattr(transformers, f"{kind}Processor")(pixels, tokenizer, num_image_tokens=4)
  made.save_pretrained(folder)
  images = ["wide", "tall"] if hybrid else ["wide", "rgb", "tall"]
  return made, [
    dict(images=images, text=[f"{mark} a {mark}", *[f"{mark}{_TEXT}"] * (len(images) - 2)],
         padding=True),
  ]  # fmt: skip


def deepseek_vl_hybrid(seed: int, folder: pathlib.Path):
  return deepseek_vl(seed, folder, hybrid=True)


def fuyu(seed: int, folder: pathlib.Path):
  import transformers

  _typed(folder, "fuyu")
  tokenizer = unigram_tokenizer(seed, folder, ["|SPEAKER|", "|NEWLINE|"])
  # The processor does not work with the Pillow class.
  pixels = transformers.FuyuImageProcessor(
    size={"height": 30, "width": 50}, patch_size={"height": 10, "width": 10}
  )
  made = transformers.FuyuProcessor(pixels, tokenizer)
  made.save_pretrained(folder)
  return made, [
    dict(images=["wide", "rgb"], text=["a photo of", _TEXT], padding=True),
    dict(images=["tall"], text=["Answer: what is it?\n"], padding=True),
  ]  # fmt: skip


# Name -> function (seed, folder) -> (the reference's processor, calls), which fills the folder.
MAKERS: dict[str, Any] = {
  f.__name__: f
  for f in (
    blip2, deepseek_vl, deepseek_vl_hybrid, fuyu, idefics, idefics2, idefics3, instructblip,
    instructblipvideo, internvl, llava, llava_next, llava_next_video, llava_onevision,
    llava_square, mllama, pixtral, qwen2_5_vl, qwen2_vl, smolvlm, video_llama_3, video_llava,
  )
}  # fmt: skip
CHATS = ("llava", "llava_onevision", "qwen2_vl")


def _directory(make: Any) -> Any:
  return lambda seed, folder: _rows(*make(seed, folder), seed)


DIRECTORIES = {name: _directory(make) for name, make in MAKERS.items()}
