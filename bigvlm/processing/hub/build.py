"""Reads a checkpoint's tokenizer: `tokenizer.json`, a sentencepiece model, or vocab and merges.

Some classes of transformers take no more than the vocabulary from those files; `builds` has what
they put around it. Every other class is taken as its `tokenizer.json` says.
"""

import json
import pathlib
from collections.abc import Mapping
from typing import Any

import tokenizers
from tokenizers import AddedToken, decoders, models, normalizers

from bigvlm.processing.hub import builds, chat, spm
from bigvlm.processing.hub.tokenizers import FastText, SentencePieceText, Text
from bigvlm.utils import jsons

_NAMED = tuple(f"{name}_token" for name in ("bos", "eos", "unk", "sep", "pad", "cls", "mask"))
_MODELS = ("tokenizer.model", "spiece.model", "sentencepiece.bpe.model")


def make(directory: str | pathlib.Path) -> Text | None:
  """The tokenizer of a directory, or None where it has no tokenizer files.

  Raises:
    ValueError: files that are damaged, or that lack something.
  """
  directory = pathlib.Path(directory)
  cfg, config = _json(directory / "tokenizer_config.json"), _json(directory / "config.json")
  name = _class(cfg, config)
  if name == "LlamaTokenizer" and _byte_level(_json(directory / "tokenizer.json")):
    name = ""  # Llama 3: its files name the class of Llama 2.
  spiece = directory / "spiece.model"
  found: Text | None
  if name == "SiglipTokenizer" and spiece.is_file():
    found = _siglip(spiece, cfg, _legacy(directory, cfg))
  else:
    found = _fast(directory, name, cfg)
  if found is not None:
    found.template = chat.find(directory)
  return found


def _json(path: pathlib.Path) -> dict[str, Any]:
  return jsons.read(path) if path.is_file() else {}


def _class(cfg: Mapping[str, Any], config: Mapping[str, Any]) -> str:
  """The class that the reference would use."""
  kind = config.get("model_type", "")
  named = (cfg.get("tokenizer_class") or config.get("tokenizer_class") or "").removesuffix("Fast")
  if kind in builds.PLAIN:
    return ""
  types = builds.MODEL_TYPES
  return types[kind] if kind in builds.WRONG or (not named and kind in types) else named


def _byte_level(raw: Mapping[str, Any]) -> bool:
  """Whether a `tokenizer.json` cuts text into bytes."""
  parts = [raw.get(key) or {} for key in ("pre_tokenizer", "decoder")]
  every = [*parts, *(p for part in parts for k in part if k.endswith("izers") for p in part[k])]
  every += [p for part in parts for p in part.get("decoders", ())]
  return any(part.get("type") == "ByteLevel" for part in every)


def _text(token: Any) -> str:
  return token["content"] if isinstance(token, Mapping) else str(token)


def _legacy(directory: pathlib.Path, cfg: Mapping[str, Any]) -> dict[str, Any]:
  """`special_tokens_map.json`, which counts where the configuration lists no added tokens."""
  return {} if "added_tokens_decoder" in cfg else _json(directory / "special_tokens_map.json")


def _specials(
  defaults: Mapping[str, str], *sources: Mapping[str, Any]
) -> tuple[dict[str, str], dict[str, str], list[str]]:
  """Named tokens, those of single models, and a list of others; later sources come first."""
  special, extra, more = dict(defaults), {}, []
  for source in sources:
    for key, value in source.items():
      if key in _NAMED:
        special.pop(key, None)
        if value is not None:
          special[key] = _text(value)
      elif key.endswith("_token") and isinstance(value, (str, Mapping)):
        extra[key] = _text(value)
      elif key in ("extra_special_tokens", "additional_special_tokens"):
        if isinstance(value, Mapping):
          extra |= {k: _text(v) for k, v in value.items()}
        else:
          more += [_text(v) for v in value or ()]
  return special, extra, more


def _added(listed: Mapping[int, Mapping[str, Any]]) -> list[AddedToken]:
  keys = ("single_word", "lstrip", "rstrip", "normalized", "special")
  return [
    AddedToken(listed[n]["content"], **{k: bool(listed[n][k]) for k in keys if k in listed[n]})
    for n in sorted(listed)
  ]


def _siglip(path: pathlib.Path, cfg: Mapping[str, Any], legacy: Mapping[str, Any]) -> Text:
  special, extra, more = _specials(
    {"eos_token": "</s>", "unk_token": "<unk>", "pad_token": "</s>"}, cfg, legacy
  )
  data = path.read_bytes()
  ids = {text: n for n, (text, _, _) in enumerate(spm.read(data, str(path)).pieces)}
  tokens = {
    t["content"]: (int(n), bool(t.get("lstrip")), bool(t.get("rstrip")))
    for n, t in cfg.get("added_tokens_decoder", {}).items()
  }
  after = max(len(ids), 1 + max((n for n, _, _ in tokens.values()), default=0))
  for token in (*special.values(), *extra.values(), *more):
    if token not in tokens:
      tokens[token] = (ids.get(token, after), False, False)
      after += token not in ids
  return SentencePieceText(
    data,
    tokens,
    str(path),
    lower=cfg.get("do_lower_case", True),
    tidy=bool(cfg.get("clean_up_tokenization_spaces")),
    special=special,
    extra=extra,
    cfg={"model_max_length": 64} | dict(cfg),
  )


def _fast(directory: pathlib.Path, name: str, cfg: Mapping[str, Any]) -> Text | None:
  build = builds.BUILDS.get(name, {})
  cfg = dict(cfg)
  more: list[str | AddedToken] = []
  listed = {int(n): t for n, t in cfg.get("added_tokens_decoder", {}).items()}
  post = None
  path = directory / "tokenizer.json"
  model = next((directory / f for f in _MODELS if (directory / f).is_file()), None)
  if path.is_file():
    backend, raw = _from_json(path, build)
    post = backend.post_processor
    cfg["add_bos_token"] = cfg["add_eos_token"] = False  # The file's own come first.
    if not listed and build:
      listed = {t["id"]: t for t in raw["added_tokens"]}
    if raw.get("padding"):
      cfg.setdefault("padding_side", raw["padding"]["direction"].lower())
      cfg.setdefault("pad_token", raw["padding"]["pad_token"])
  elif model is not None:
    backend, more = _from_pieces(model, name, build, cfg)
  elif (directory / "vocab.json").is_file():
    if not (directory / "merges.txt").is_file():
      raise ValueError(f"{directory} has vocab.json, but no merges.txt")
    backend = _from_merges(directory, build)
  elif (directory / "vocab.txt").is_file():
    backend = _from_words(directory / "vocab.txt", build)
  else:
    return None
  special, extra, others = _specials(build.get("special", {}), cfg, _legacy(directory, cfg))
  if name == "T5Tokenizer":
    others += [f"<extra_id_{i}>" for i in range(cfg.get("extra_ids", 100))]
  if build:
    cfg.setdefault("padding_side", build.get("side", "right"))
  found = FastText(
    backend,
    suffix="</w>" if name == "CLIPTokenizer" else "",
    tidy=cfg.get("clean_up_tokenization_spaces") and not isinstance(backend.model, models.BPE),
    special=special,
    extra=extra,
    cfg=cfg,
  )
  if build:
    build["parts"](backend, cfg)
  there = backend.get_added_tokens_decoder()
  tokens: list[str | AddedToken] = [
    t for t in _added(listed) if repr(t) not in {repr(old) for old in there.values()}
  ]
  known = {t.content for t in there.values()} | {str(getattr(t, "content", t)) for t in tokens}
  for token in (*special.values(), *extra.values(), *more, *others):
    text = token.content if isinstance(token, AddedToken) else token
    if text not in known:
      known.add(text)
      tokens.append(token if isinstance(token, AddedToken) else AddedToken(text, special=True))
  found.add(tokens)
  if build.get("around"):
    backend.post_processor = build["around"](found)
  elif post is None:
    found.surround(bool(cfg.get("add_bos_token")), bool(cfg.get("add_eos_token")))
  return found


def _from_json(
  path: pathlib.Path, build: Mapping[str, Any]
) -> tuple[tokenizers.Tokenizer, dict[str, Any]]:
  """The tokenizer of a file, with the class's own flags, and the file's content."""
  text = path.read_text("utf-8")
  try:
    raw = json.loads(text)
    if not build:
      return tokenizers.Tokenizer.from_str(text), raw
    changed = raw | {"added_tokens": [], "model": raw["model"] | build["model"]}
    if raw["model"].get("type", build["model"]["type"]) != build["model"]["type"]:
      raise ValueError(f"its model is {raw['model']['type']}, not {build['model']['type']}")
    backend = tokenizers.Tokenizer.from_str(json.dumps(changed))
    if build["model"]["type"] == "Unigram":
      backend.normalizer = _charsmap(raw.get("normalizer"))
    return backend, raw
  except Exception as e:  # The library raises bare exceptions.
    raise ValueError(f"{path} is no tokenizer: {e}") from None


def _charsmap(spec: Mapping[str, Any] | None) -> Any:
  """The compiled table among the normalizers of a file, or None."""
  parts = (spec or {}).get("normalizers", [spec] if spec else [])
  for part in parts:
    if part.get("type") == "Precompiled":
      import base64

      return normalizers.Precompiled(base64.b64decode(part["precompiled_charsmap"]))
  return None


def _from_pieces(
  path: pathlib.Path, name: str, build: Mapping[str, Any], cfg: dict[str, Any]
) -> tuple[tokenizers.Tokenizer, list[AddedToken]]:
  """The tokenizer of a sentencepiece model, and the tokens that are found before pieces are."""
  found = spm.read(path.read_bytes(), str(path))
  tokens = [
    AddedToken(text, normalized=False, special=kind == spm.CONTROL)
    for text, _, kind in found.pieces
    if kind in (spm.CONTROL, spm.USER)
  ]
  flags = build.get("model") or dict(
    type="Unigram" if found.kind == spm.UNIGRAM else "BPE",
    byte_fallback=found.byte_fallback,
    unk_token=found.names["unk"],
    unk_id=found.unk,
  )
  if flags["type"] == "BPE":
    vocab = {text: n for n, (text, _, _) in enumerate(found.pieces)}
    model = models.BPE(
      vocab=vocab,
      merges=_merges(vocab),
      fuse_unk=True,
      byte_fallback=flags["byte_fallback"],
      unk_token=flags["unk_token"],
    )
  else:
    scores = [(text, score) for text, score, _ in found.pieces]
    scores = builds.SCORES[name](scores, cfg) if name in builds.SCORES else scores
    model = models.Unigram(scores, flags["unk_id"], flags["byte_fallback"])
  backend = tokenizers.Tokenizer(model)
  table = [normalizers.Precompiled(found.charsmap)] if found.charsmap else []
  if build:
    backend.normalizer = table[0] if table else None
    return backend, tokens
  backend.normalizer = normalizers.Sequence([*table, normalizers.Replace(" ", builds.SPACE)])
  parts = [decoders.Replace(builds.SPACE, " ")]
  if found.byte_fallback:
    parts += [decoders.ByteFallback(), decoders.Fuse()]
  backend.decoder = decoders.Sequence(parts)
  for key in ("bos", "eos", "unk"):
    if getattr(found, key) >= 0:
      cfg.setdefault(f"{key}_token", found.names[key])
  return backend, tokens


def _from_merges(directory: pathlib.Path, build: Mapping[str, Any]) -> tokenizers.Tokenizer:
  vocab = _json(directory / "vocab.json")
  lines = (directory / "merges.txt").read_text("utf-8").split("\n")
  merges = [tuple(line.split()) for line in lines if line.strip() and not line.startswith("#v")]
  flags = {k: v for k, v in build.get("model", {}).items() if k != "type"}
  try:
    return tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=merges, **flags))
  except Exception as e:  # The library raises bare exceptions.
    raise ValueError(f"{directory}: vocab.json and merges.txt do not match ({e})") from None


def _from_words(path: pathlib.Path, build: Mapping[str, Any]) -> tokenizers.Tokenizer:
  """BERT's: a file with one piece a line."""
  if build.get("model", {}).get("type") != "WordPiece":
    raise ValueError(f"{path} belongs to BERT's tokenizer, which tokenizer_config.json must name")
  vocab = {line: n for n, line in enumerate(path.read_text("utf-8").split("\n")) if line}
  flags = {k: v for k, v in build["model"].items() if k != "type"}
  return tokenizers.Tokenizer(models.WordPiece(vocab=vocab, **flags))


def _merges(vocab: Mapping[str, int]) -> list[tuple[str, str]]:
  """Merges of a BPE vocabulary: every cut of a piece into two others, pieces in order."""
  return [
    (piece[:at], piece[at:])
    for piece in vocab
    for at in range(1, len(piece))
    if piece[:at] in vocab and piece[at:] in vocab
  ]
