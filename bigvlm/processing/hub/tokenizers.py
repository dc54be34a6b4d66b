"""A checkpoint's tokenizer: text to ids and back, as transformers 5 does it.

Two kinds share one interface (`Text`): tokenizers of the `tokenizers` library, and SigLIP's, which
goes through the sentencepiece library. `build.make` reads one from a directory.
"""

import re
import string
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import tokenizers
from tokenizers import AddedToken, processors

from bigvlm.processing.hub import chat

_UNLIMITED = 10**20  # What a longer `model_max_length` means.
_SPACE = "\u2581"


class Text:
  """What the tokenizers of all kinds share: batches, padding, special tokens, chat.

  Attributes:
    special: {"bos_token": text, ...} of the named special tokens.
    extra: {"image_token": text, ...} of those that only some models have.
    bos, eos, pad: ids, None where there is none.
    vocab_size: number of ids, added tokens included.
    padding_side, truncation_side: "left" or "right".
    max_length: most ids that the files allow, or None.
    inputs: names of what a batch has: "input_ids", "attention_mask", "token_type_ids".
    template: chat template, several of them by name, or None.
  """

  def __init__(self, special: dict[str, str], extra: dict[str, str], cfg: Mapping[str, Any]):
    self.special = special
    self.extra = extra
    self.padding_side = cfg.get("padding_side") or "right"
    self.truncation_side = cfg.get("truncation_side") or "right"
    limit = cfg.get("model_max_length")
    self.max_length = int(limit) if limit is not None and limit < _UNLIMITED else None
    self.inputs = tuple(cfg.get("model_input_names") or ("input_ids", "attention_mask"))
    self.template: str | dict[str, str] | None = None

  @property
  def bos(self) -> int | None:
    return self._named("bos_token")

  @property
  def eos(self) -> int | None:
    return self._named("eos_token")

  @property
  def pad(self) -> int | None:
    return self._named("pad_token")

  def _named(self, name: str) -> int | None:
    return self.id(self.special[name]) if name in self.special else None

  def id(self, token: str) -> int | None:
    """The id of one token, or None."""
    raise NotImplementedError

  def encode(
    self, text: str, pair: str | None = None, *, special: bool = True, limit: int | None = None
  ) -> tuple[list[int], list[int]]:
    """Ids of a text, and of a second one after it.

    Args:
      text, pair: the texts.
      special: whether the tokens that the class puts around a text are put there.
      limit: most ids; what is too long is cut on `truncation_side`.

    Returns:
      Ids and, for each, 0 for the first text and 1 for the second.
    """
    raise NotImplementedError

  def decode(self, ids: Iterable[int], *, skip_special: bool = True) -> str:
    """The text of ids; special tokens are left out or not."""
    raise NotImplementedError

  def __call__(
    self,
    texts: str | Sequence[str],
    pairs: Sequence[str] | None = None,
    *,
    padding: bool | str = "longest",
    truncation: bool = False,
    max_length: int | None = None,
    pad_to_multiple_of: int | None = None,
    padding_side: str | None = None,
    add_special_tokens: bool = True,
    types: bool | None = None,
  ) -> dict[str, np.ndarray]:
    """A batch of texts.

    Args:
      texts: one string or several.
      pairs: as many second texts, or None.
      padding: True or "longest", "max_length", or False (then all must have one length).
      truncation: whether rows are cut to `max_length`.
      max_length: by default what the files allow.
      pad_to_multiple_of: lengths are rounded up to a multiple of this.
      padding_side: "left" or "right" instead of the tokenizer's own.
      add_special_tokens: as `special` of `encode`.
      types: whether `token_type_ids` are wanted; None = as the files say.

    Returns:
      int64 [B, T] `input_ids`, and `attention_mask` and `token_type_ids` where wanted.

    Raises:
      ValueError: padding without a pad token, rows of several lengths without padding.
    """
    texts = [texts] if isinstance(texts, str) else list(texts)
    for n, text in enumerate(texts):
      if not isinstance(text, str):
        raise ValueError(f"text[{n}] is {type(text).__name__}, not a string")
    limit = max_length if max_length is not None else self.max_length
    cut = limit if truncation else None
    rows = [
      self.encode(text, None if pairs is None else pairs[n], special=add_special_tokens, limit=cut)
      for n, text in enumerate(texts)
    ]
    found = self.padded(
      rows, padding=padding, length=limit, multiple=pad_to_multiple_of, side=padding_side
    )
    if not ("token_type_ids" in self.inputs if types is None else types):
      del found["token_type_ids"]
    if "attention_mask" not in self.inputs:
      del found["attention_mask"]
    return found

  def padded(
    self,
    rows: Sequence[tuple[Sequence[int], Sequence[int]]],
    *,
    padding: bool | str = "longest",
    length: int | None = None,
    multiple: int | None = None,
    side: str | None = None,
  ) -> dict[str, np.ndarray]:
    """Rows of (ids, types) as int64 [B, T] `input_ids`, `attention_mask` and `token_type_ids`."""
    longest = max((len(ids) for ids, _ in rows), default=0)
    if padding == "max_length" and length is not None:
      longest = max(longest, length)
    if padding and multiple:
      longest = -(-longest // multiple) * multiple
    side = side or self.padding_side
    if side not in ("left", "right"):
      raise ValueError(f"padding_side is 'left' or 'right', not {side!r}")
    short = any(len(ids) < longest for ids, _ in rows)
    if short and not padding:
      lengths = sorted({len(ids) for ids, _ in rows})
      raise ValueError(f"rows have {lengths} ids; ask for padding to make one array of them")
    if short and self.pad is None:
      raise ValueError("this tokenizer has no pad token, so that rows must have one length")
    found = {
      "input_ids": np.full((len(rows), longest), self.pad or 0, np.int64),
      "attention_mask": np.zeros((len(rows), longest), np.int64),
      "token_type_ids": np.zeros((len(rows), longest), np.int64),
    }
    for n, (ids, kinds) in enumerate(rows):
      at = slice(longest - len(ids), longest) if side == "left" else slice(0, len(ids))
      found["input_ids"][n, at] = ids
      found["attention_mask"][n, at] = 1
      found["token_type_ids"][n, at] = kinds
    return found

  def chat(self, messages: Sequence[Mapping[str, Any]], **options: Any) -> str:
    """A conversation in the checkpoint's chat template; see `chat.render` for the options."""
    keys = ("tools", "documents", "add_generation_prompt")
    variables = self.special | self.extra | {k: v for k, v in options.items() if k not in keys}
    known = {k: v for k, v in options.items() if k in keys}
    return chat.render(self.template, messages, variables, **known)


class FastText(Text):
  """A tokenizer of the `tokenizers` library.

  Args:
    backend: it. suffix: end of a word in its pieces, taken out when decoding.
    tidy: whether spaces in front of punctuation are taken out when decoding.
  """

  def __init__(self, backend: tokenizers.Tokenizer, suffix: str = "", tidy: bool = False, **rest):
    super().__init__(**rest)
    self.backend = backend
    self._suffix = suffix
    self._tidy = tidy
    backend.no_padding()
    backend.no_truncation()

  @property
  def vocab_size(self) -> int:
    return self.backend.get_vocab_size()

  def id(self, token: str) -> int | None:
    return self.backend.token_to_id(token)

  def encode(self, text, pair=None, *, special=True, limit=None):
    if limit is not None:
      self.backend.enable_truncation(limit, direction=self.truncation_side)
    found = self.backend.encode(text, pair, add_special_tokens=special)
    if limit is not None:
      self.backend.no_truncation()
    return found.ids, found.type_ids

  def decode(self, ids, *, skip_special=True):
    text = self.backend.decode([int(i) for i in ids], skip_special_tokens=skip_special)
    if self._suffix:
      text = text.replace(self._suffix, " ").strip()
    return tidied(text) if self._tidy else text

  def add(self, tokens: Iterable[str | AddedToken]) -> None:
    """Makes tokens of texts; those that are there keep their ids."""
    self.backend.add_tokens(list(tokens))

  def surround(self, bos: bool, eos: bool) -> None:
    """Sets which tokens stand around a text; nothing stands between it and a second one."""
    before = [self.special["bos_token"]] if bos else []
    after = [self.special["eos_token"]] if eos else []
    parts = [[f"{t}:{n}" for t in (*before, "$" + "AB"[n], *after)] for n in (0, 1)]
    self.backend.post_processor = processors.TemplateProcessing(
      single=" ".join(parts[0]),
      pair=" ".join(parts[0] + parts[1]),
      special_tokens=[(t, self.id(t)) for t in before + after],
    )


class SentencePieceText(Text):
  """SigLIP's: lower case, no punctuation, sentencepiece, and an end token (also when cut).

  Args:
    model: bytes of the sentencepiece model. tokens: {text: (id, strip left, strip right)} of tokens
      that are found in a text before it is cut into pieces.
    where: the file, for messages.
    lower: whether text becomes lower-case. tidy: as for `FastText`.
  """

  def __init__(
    self,
    model: bytes,
    tokens: dict[str, tuple[int, bool, bool]],
    where: str,
    lower: bool = True,
    tidy: bool = False,
    **rest,
  ):
    import sentencepiece

    super().__init__(**rest)
    try:
      self._sp = sentencepiece.SentencePieceProcessor(model_proto=model)
    except Exception as e:  # The binding raises RuntimeError, and others on odd bytes.
      raise ValueError(f"{where} is no sentencepiece model ({e})") from None
    self._tokens = tokens
    self._lower = lower
    self._tidy = tidy
    longest = sorted(tokens, key=len, reverse=True)
    self._split = re.compile("(" + "|".join(map(re.escape, longest)) + ")") if tokens else None
    self._names = {n: t for t, (n, _, _) in tokens.items()}
    self._unk = self.special["unk_token"]
    self._unk_length = len(self._sp.encode(self._unk, out_type=str))

  @property
  def vocab_size(self) -> int:
    return max(self._sp.get_piece_size(), 1 + max(self._names, default=0))

  def id(self, token: str) -> int | None:
    if token in self._tokens:
      return self._tokens[token][0]
    found = self._sp.piece_to_id(token)
    return found if self._sp.id_to_piece(found) == token else None

  def encode(self, text, pair=None, *, special=True, limit=None):
    parts = [self._ids(text)] + ([] if pair is None else [self._ids(pair)])
    if limit is not None:
      room = limit - special * len(parts)
      while sum(map(len, parts)) > room:
        longest = max(parts, key=len)
        longest.pop(0 if self.truncation_side == "left" else -1)
    if special:
      parts = [ids if ids[-1:] == [self.eos] else [*ids, self.eos] for ids in parts]
    return sum(parts, []), [0] * sum(map(len, parts))

  def _ids(self, text: str) -> list[int]:
    text = _SPACE + text.replace(_SPACE, " ")
    parts = self._split.split(text) if self._split else [text]
    found: list[str] = []
    for n, part in enumerate(parts):
      if part in self._tokens:
        found.append(part)
        continue
      if n > 0 and self._tokens[parts[n - 1]][2]:
        part = part.lstrip()
      if n + 1 < len(parts) and self._tokens[parts[n + 1]][1]:
        part = part.rstrip()
      if part:
        found.extend(self._pieces(part))
    if found[:1] == [_SPACE] and found[1:2] and found[1] in self._tokens:
      found = found[1:]
    return [self._tokens[p][0] if p in self._tokens else self._sp.piece_to_id(p) for p in found]

  def _pieces(self, text: str) -> list[str]:
    if self._lower:
      text = text.lower()
    text = text.translate(str.maketrans("", "", string.punctuation))
    text = re.sub(r"\s+", " ", text).strip()
    # A word at the beginning of a text has the same pieces as one behind another.
    return self._sp.encode(self._unk + text, out_type=str)[self._unk_length :]

  def decode(self, ids, *, skip_special=True):
    out, run = "", []
    silent = set(self.special.values())
    for i in (int(i) for i in ids):
      token = self._names.get(i) or self._sp.id_to_piece(i)
      if token not in silent:
        run.append(token)
      elif not skip_special:
        space = "" if not run and out.endswith(tuple(silent)) else " "
        out += space + self._sp.decode(run) + token
        run = []
    text = (out + self._sp.decode(run)).strip()
    return tidied(text) if self._tidy else text


def tidied(text: str) -> str:
  """Text without spaces in front of punctuation and of shortened words."""
  for mark in (" .", " ?", " !", " ,"):
    text = text.replace(mark, mark[1:])
  text = text.replace(" ' ", "'")
  for mark in (" n't", " 'm", " 's", " 've", " 're"):
    text = text.replace(mark, mark[1:])
  return text
