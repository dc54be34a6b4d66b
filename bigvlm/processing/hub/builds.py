"""What some classes of transformers put around the vocabulary of their files.

Every class that is not here is taken as its `tokenizer.json` says.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import tokenizers
from tokenizers import Regex, decoders, normalizers, pre_tokenizers, processors

from bigvlm.processing.hub.tokenizers import Text

SPACE = "\u2581"


Cfg = Mapping[str, Any]


def _sentencepiece_gaps(backend: tokenizers.Tokenizer, cfg: Cfg) -> None:
  backend.pre_tokenizer = pre_tokenizers.Sequence(
    [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(SPACE, "always", True)]
  )
  backend.decoder = decoders.Metaspace(SPACE, "always", True)


def _gemma(backend: tokenizers.Tokenizer, cfg: Cfg, lower: bool = False) -> None:
  parts = [normalizers.Lowercase()] if lower else []
  replace = normalizers.Replace(" ", SPACE)
  backend.normalizer = normalizers.Sequence([*parts, replace]) if lower else replace
  backend.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
  backend.decoder = decoders.Sequence(
    [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
  )


_CLIP_WORDS = (
  r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
)


def _clip(backend: tokenizers.Tokenizer, cfg: Cfg) -> None:
  backend.normalizer = normalizers.Sequence(
    [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
  )
  backend.pre_tokenizer = pre_tokenizers.Sequence(
    [
      pre_tokenizers.Split(Regex(_CLIP_WORDS), "removed", invert=True),
      pre_tokenizers.ByteLevel(add_prefix_space=False),
    ]
  )
  backend.decoder = decoders.ByteLevel()


def _llama(backend: tokenizers.Tokenizer, cfg: Cfg) -> None:
  prefix = cfg.get("add_prefix_space")
  prefix = prefix is None or prefix
  scheme = "never" if not prefix else "always" if cfg.get("legacy") else "first"
  backend.normalizer = None
  backend.pre_tokenizer = pre_tokenizers.Metaspace(SPACE, scheme, split=False)
  strip = [decoders.Strip(" ", 1, 0)] if prefix else []
  backend.decoder = decoders.Sequence(
    [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
  )


_QWEN2_WORDS = (
  r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
  r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def _qwen2(backend: tokenizers.Tokenizer, cfg: Cfg) -> None:
  prefix = bool(cfg.get("add_prefix_space"))
  backend.normalizer = normalizers.NFC()
  backend.pre_tokenizer = pre_tokenizers.Sequence(
    [
      pre_tokenizers.Split(Regex(_QWEN2_WORDS), "isolated"),
      pre_tokenizers.ByteLevel(add_prefix_space=prefix, use_regex=False),
    ]
  )
  backend.decoder = decoders.ByteLevel()


def _gpt2(backend: tokenizers.Tokenizer, cfg: Cfg) -> None:
  backend.normalizer = None
  prefix = bool(cfg.get("add_prefix_space"))
  backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix)
  backend.decoder = decoders.ByteLevel()


def _bert(backend: tokenizers.Tokenizer, cfg: Cfg) -> None:
  backend.normalizer = normalizers.BertNormalizer(
    clean_text=True,
    handle_chinese_chars=cfg.get("tokenize_chinese_chars", True),
    strip_accents=cfg.get("strip_accents"),
    lowercase=cfg.get("do_lower_case", True),
  )
  backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
  backend.decoder = decoders.WordPiece(prefix="##")


def _template(text: Text, single: str, pair: str) -> processors.TemplateProcessing:
  ends = {"BOS": text.special.get("bos_token"), "EOS": text.special["eos_token"]}
  single, pair = ([ends.get(p, p) for p in parts.split()] for parts in (single, pair))
  used = [(t, text.id(t)) for t in ends.values() if t in single]
  return processors.TemplateProcessing(single=single, pair=pair, special_tokens=used)


def _end(text: Text) -> processors.TemplateProcessing:
  return _template(text, "$A EOS", "$A EOS $B EOS")


def _both(text: Text) -> processors.TemplateProcessing:
  return _template(text, "BOS $A EOS", "BOS $A EOS EOS $B EOS")


def _between(text: Text) -> processors.TemplateProcessing:
  names = [text.special[f"{n}_token"] for n in ("cls", "sep")]
  cls, sep = names
  return processors.TemplateProcessing(
    single=f"{cls}:0 $A:0 {sep}:0",
    pair=f"{cls}:0 $A:0 {sep}:0 $B:1 {sep}:1",
    special_tokens=[(t, text.id(t)) for t in names],
  )


def _roberta(text: Text) -> processors.RobertaProcessing:
  ends = [(text.special[k], text.id(text.special[k])) for k in ("eos_token", "bos_token")]
  return processors.RobertaProcessing(*ends, False, False)


_BYTES = dict(
  dropout=None, continuing_subword_prefix="", end_of_word_suffix="", fuse_unk=False,
  byte_fallback=False,
)  # fmt: skip
_GEMMA = dict(
  model=dict(type="BPE", dropout=None, fuse_unk=True, byte_fallback=True, unk_token="<unk>"),
  special=dict(
    bos_token="<bos>", eos_token="<eos>", unk_token="<unk>", pad_token="<pad>", mask_token="<mask>"
  ),
  side="left",
)  # fmt: skip
# Class -> what it puts around a vocabulary: flags of the model, the parts before and after it,
# default special tokens, padding side, and the tokens around a text (else the file's own).
BUILDS: dict[str, dict[str, Any]] = {
  "BertTokenizer": dict(
    model=dict(
      type="WordPiece", unk_token="[UNK]", continuing_subword_prefix="##",
      max_input_chars_per_word=100,
    ),
    parts=_bert,
    special=dict(
      unk_token="[UNK]", sep_token="[SEP]", pad_token="[PAD]", cls_token="[CLS]",
      mask_token="[MASK]",
    ),
    around=_between,
  ),
  "CLIPTokenizer": dict(
    model=dict(
      type="BPE", dropout=None, continuing_subword_prefix="", end_of_word_suffix="</w>",
      fuse_unk=False, byte_fallback=False, unk_token="<|endoftext|>",
    ),
    parts=_clip,
    special=dict(
      bos_token="<|startoftext|>", eos_token="<|endoftext|>", unk_token="<|endoftext|>",
      pad_token="<|endoftext|>",
    ),
    around=_roberta,
  ),
  "GPT2Tokenizer": dict(
    model=dict(type="BPE", unk_token=None, **_BYTES),
    parts=_gpt2,
    special=dict(
      bos_token="<|endoftext|>", eos_token="<|endoftext|>", unk_token="<|endoftext|>"
    ),
  ),
  "GemmaTokenizer": dict(parts=_gemma, **_GEMMA),
  "LlamaTokenizer": dict(
    model=dict(type="BPE", dropout=None, fuse_unk=True, byte_fallback=True, unk_token=None),
    parts=_llama,
    special=dict(bos_token="<s>", eos_token="</s>", unk_token="<unk>"),
    side="left",
  ),
  "Qwen2Tokenizer": dict(
    model=dict(type="BPE", unk_token=None, **_BYTES),
    parts=_qwen2,
    special=dict(
      eos_token="<|endoftext|>", unk_token="<|endoftext|>", pad_token="<|endoftext|>"
    ),
  ),
  "Siglip2Tokenizer": dict(parts=functools.partial(_gemma, lower=True), **_GEMMA),
  "T5Tokenizer": dict(
    model=dict(type="Unigram", unk_id=2, byte_fallback=False),
    parts=_sentencepiece_gaps,
    special=dict(eos_token="</s>", unk_token="<unk>", pad_token="<pad>"),
    around=_end,
  ),
  "XLMRobertaTokenizer": dict(
    model=dict(type="Unigram", unk_id=3, byte_fallback=False),
    parts=_sentencepiece_gaps,
    special=dict(
      bos_token="<s>", eos_token="</s>", sep_token="</s>", cls_token="<s>", unk_token="<unk>",
      pad_token="<pad>", mask_token="<mask>",
    ),
    around=_both,
  ),
}  # fmt: skip
# `model_type` -> class that the reference expects; another one in the files comes first.
MODEL_TYPES = {
  "aimv2": "CLIPTokenizer",
  "blip-2": "GPT2Tokenizer",
  "clip": "CLIPTokenizer",
  "gemma": "GemmaTokenizer",
  "gemma2": "GemmaTokenizer",
  "gemma3": "GemmaTokenizer",
  "gemma3_text": "GemmaTokenizer",
  "idefics": "LlamaTokenizer",
  "idefics2": "LlamaTokenizer",
  "instructblip": "GPT2Tokenizer",
  "instructblipvideo": "GPT2Tokenizer",
  "internvl": "Qwen2Tokenizer",
  "metaclip_2": "XLMRobertaTokenizer",
  "mt5": "T5Tokenizer",
  "opt": "GPT2Tokenizer",
  "phi": "GPT2Tokenizer",
  "qwen2": "Qwen2Tokenizer",
  "qwen2_5_vl": "Qwen2Tokenizer",
  "qwen2_vl": "Qwen2Tokenizer",
  "siglip": "SiglipTokenizer",
  "siglip2": "Siglip2Tokenizer",
  "t5": "T5Tokenizer",
}
# Types whose published files name a wrong class.
WRONG = ("qwen2", "siglip2")
# Types that are always taken as their `tokenizer.json` says, whatever class the files name.
PLAIN = (
  "fuyu", "llava", "llava_next", "mistral", "persimmon", "pixtral", "smolvlm", "vipllava",
)  # fmt: skip


def _t5_scores(scores: list[tuple[str, float]], cfg: Mapping[str, Any]) -> list:
  return scores + [(f"<extra_id_{i}>", 0.0) for i in reversed(range(cfg.get("extra_ids", 100)))]


def _xlm_scores(scores: list[tuple[str, float]], cfg: Mapping[str, Any]) -> list:
  named = [(t, 0.0) for t in ("<s>", "<pad>", "</s>", "<unk>")]
  return [*named, *scores[3:], ("<mask>", 0.0)]


SCORES: dict[str, Callable] = {"T5Tokenizer": _t5_scores, "XLMRobertaTokenizer": _xlm_scores}
