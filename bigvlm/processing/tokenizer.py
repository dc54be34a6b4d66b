"""Sentencepiece tokenisers with PaliGemma's location and segmentation tokens."""

import io
import os
import pathlib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from bigvlm.processing import boxes
from bigvlm.utils import names

_SPECIAL = re.compile(r"(<loc\d{4}>|<seg\d{3}>)")


class SentencePiece:
  """A sentencepiece model file plus `<loc0000>`..`<loc1023>` and `<seg000>`..`<seg127>`.

  A file that has those pieces (PaliGemma's) keeps its ids. In one that lacks them (Gemma's, of V
  pieces) the locations are appended at V..V+1023 and the masks at V+1024..V+1151, which for Gemma
  (V = 256,000) are the published ids.

  Args:
    path: the model file.
    model: its bytes instead.
    extra: False leaves the location and segmentation tokens out.
    bos, eos, pad: ids to use instead of the file's (SigLIP pads with EOS: pad=1).

  Attributes:
    vocab_size: number of ids, appended ones included.
    bos, eos, pad: ids; None where the file has none.
    newline: list of ids of a line break.
    special: {"<loc0000>": id, ...}.

  Raises:
    ValueError: when the file is not there or is no sentencepiece model (the message names it).
  """

  def __init__(
    self,
    path: str | os.PathLike | None = None,
    *,
    model: bytes | None = None,
    extra: bool = True,
    bos: int | None = None,
    eos: int | None = None,
    pad: int | None = None,
  ):
    where = str(path) if path is not None else "the given bytes"
    if model is None:
      if path is None:
        raise ValueError("a sentencepiece tokeniser needs `path` (of a .model file) or `model`")
      try:
        model = pathlib.Path(path).read_bytes()
      except OSError as e:
        raise ValueError(f"tokeniser file {where!r}: {e.strerror or e}") from None
    self._args = dict(path=path, model=model, extra=extra, bos=bos, eos=eos, pad=pad)
    self._load(model, where)
    size = self._sp.get_piece_size()
    self.bos = self._control(bos, self._sp.bos_id())
    self.eos = self._control(eos, self._sp.eos_id())
    self.pad = self._control(pad, self._sp.pad_id())
    self.special: dict[str, int] = {}
    if extra:
      size = self._add([f"<loc{i:04d}>" for i in range(boxes.LOCS)], size)
      size = self._add([f"<seg{i:03d}>" for i in range(boxes.SEGS)], size)
    self.vocab_size = size
    self._names = {i: name for name, i in self.special.items()}
    self._silent = {i for i in (self.bos, self.eos, self.pad) if i is not None}
    self._pieces = self._sp.get_piece_size()
    self.newline = self.encode("\n")

  def _load(self, model: bytes, where: str) -> None:
    import sentencepiece

    try:
      self._sp = sentencepiece.SentencePieceProcessor(model_proto=model)
    except Exception as e:  # The binding raises RuntimeError, and others on odd bytes.
      raise ValueError(f"tokeniser file {where!r} is no sentencepiece model ({e})") from None
    if not self._sp.get_piece_size():
      raise ValueError(f"tokeniser file {where!r} is no sentencepiece model (it has no pieces)")

  @staticmethod
  def _control(given: int | None, found: int) -> int | None:
    if given is not None:
      return given
    return found if found >= 0 else None

  def _add(self, pieces: Sequence[str], size: int) -> int:
    """Enters `pieces` with the file's ids, or all of them from `size` on; returns the new size."""
    unk = self._sp.unk_id()
    found = [self._sp.piece_to_id(p) for p in pieces]
    there = [i != unk and self._sp.id_to_piece(i) == p for i, p in zip(found, pieces, strict=True)]
    if all(there):
      self.special.update(zip(pieces, found, strict=True))
      return size
    if any(there):
      lacking = pieces[there.index(False)]
      raise ValueError(
        f"the tokeniser file has some of {pieces[0]}..{pieces[-1]} but not {lacking}"
      )
    self.special.update((p, size + n) for n, p in enumerate(pieces))
    return size + len(pieces)

  def encode(self, text: str) -> list[int]:
    """Ids of `text`, without BOS and EOS."""
    if not self.special or "<" not in text:
      return self._sp.encode(text)
    out: list[int] = []
    for part in _SPECIAL.split(text):
      number = self.special.get(part)
      if number is not None:
        out.append(number)
      elif part:
        out.extend(self._sp.encode(part))
    return out

  def decode(self, ids: Iterable[int]) -> str:
    """Text of `ids`; BOS, EOS and PAD are silent, an id that no piece has becomes U+FFFD."""
    out: list[str] = []
    run: list[int] = []
    for i in ids:
      i = int(i)
      name = self._names.get(i)
      if name is None and 0 <= i < self._pieces:
        if i not in self._silent:
          run.append(i)
        continue
      if run:
        out.append(self._sp.decode(run))
        run = []
      out.append("\ufffd" if name is None else name)
    if run:
      out.append(self._sp.decode(run))
    return "".join(out)

  def __reduce__(self):
    return _rebuild, (self._args,)


def _rebuild(args: dict[str, Any]) -> SentencePiece:
  return SentencePiece(**args)


KINDS = {"sentencepiece": SentencePiece}


def make(cfg: Mapping[str, Any], workdir: str | os.PathLike | None = None) -> SentencePiece:
  """Builds a tokeniser from `dict(kind="sentencepiece", path=...)`.

  A path "workdir:NAME" lies in `workdir`, one "hf:OWNER/NAME/FILE" on the hub.
  """
  cfg = dict(cfg)
  cls = names.lookup("tokenizer", cfg.pop("kind", "sentencepiece"), KINDS)
  path = cfg.get("path")
  if isinstance(path, str) and path.startswith("workdir:"):
    if workdir is None:
      raise ValueError(f"processor.tokenizer.path={path!r} needs a working directory")
    cfg["path"] = os.path.join(workdir, path.removeprefix("workdir:"))
  elif isinstance(path, str) and path.startswith("hf:"):
    cfg["path"] = _fetch(path)
  options = ("path", "model", "extra", "bos", "eos", "pad")
  for key in cfg:
    if key not in options:
      raise ValueError(names.unknown("field of processor.tokenizer", key, options))
  return cls(**cfg)


def _fetch(path: str) -> str:
  """The local copy of a file on the hub, "hf:OWNER/NAME[@REVISION]/FILE"."""
  owner, _, rest = path.removeprefix("hf:").partition("/")
  name, _, file = rest.partition("/")
  if not file:
    raise ValueError(f"processor.tokenizer.path={path!r} is not hf:OWNER/NAME/FILE")
  from huggingface_hub import hf_hub_download

  repo, _, revision = f"{owner}/{name}".partition("@")
  try:
    return hf_hub_download(repo, file, revision=revision or None)
  except Exception as e:  # Of several libraries: no such name, no network, no permission.
    why = str(e).strip().splitlines()[0]
    raise ValueError(f"processor.tokenizer.path={path!r}: fetching it failed: {why}") from e


def train(
  texts: Iterable[str],
  path: str | os.PathLike,
  vocab_size: int = 512,
  *,
  model_type: str = "unigram",
  symbols: Sequence[str] = (),
) -> SentencePiece:
  """Trains a small sentencepiece model; the same texts give the same file, byte for byte.

  Text is kept as it is (no normalisation, no added space), digits are split, what no piece covers
  falls back to bytes, and ids are Gemma's: PAD 0, EOS 1, BOS 2, UNK 3, then "\\n".

  Args:
    texts: the corpus; must not be empty.
    path: where the model file goes (replaced atomically).
    vocab_size: at most this many pieces ("unigram" takes fewer when the corpus has fewer).
    model_type: "unigram" or "bpe".
    symbols: strings that are always one piece.

  Raises:
    ValueError: when there is no text, or vocab_size is too small for the 256 bytes.
  """
  import sentencepiece

  texts = [t for t in texts if t]
  if not texts:
    raise ValueError("a tokeniser cannot be trained on no text")
  symbols = ["\n", *symbols]
  least = 4 + 256 + len(symbols) + len({c for t in texts for c in t} - {"\n"}) + 1
  if vocab_size < least:
    raise ValueError(
      f"vocab_size={vocab_size} is too small: bytes, control tokens and the characters of this "
      f"text take {least}"
    )
  model = io.BytesIO()
  try:
    sentencepiece.SentencePieceTrainer.train(
      sentence_iterator=iter(texts),
      model_writer=model,
      vocab_size=vocab_size,
      model_type=model_type,
      hard_vocab_limit=model_type != "unigram",
      byte_fallback=True,
      split_digits=True,
      character_coverage=1.0,
      normalization_rule_name="identity",
      add_dummy_prefix=False,
      remove_extra_whitespaces=False,
      user_defined_symbols=symbols,
      pad_id=0,
      eos_id=1,
      bos_id=2,
      unk_id=3,
      pad_piece="<pad>",
      eos_piece="<eos>",
      bos_piece="<bos>",
      num_threads=1,  # More threads may change the order of a sum, and so the file.
      minloglevel=2,
    )
  except RuntimeError as e:
    raise ValueError(f"training a tokeniser of {vocab_size} pieces failed: {e}") from None
  path = pathlib.Path(path)
  path.parent.mkdir(parents=True, exist_ok=True)
  part = path.with_name(f"{path.name}.{os.getpid()}.part")
  part.write_bytes(model.getvalue())
  os.replace(part, path)
  return SentencePiece(path)
