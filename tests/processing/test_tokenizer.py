"""Ids of the published vocabulary, byte fallback, deterministic training."""

import pickle

import hypothesis
import pytest
from hypothesis import strategies as st

from bigvlm.processing import tokenizer

SPECIAL = {"<loc0000>": 0, "<loc1023>": 1023, "<seg000>": 1024, "<seg127>": 1151}


def test_missing_pieces_are_appended(plain_model):
  import sentencepiece

  size = sentencepiece.SentencePieceProcessor(model_file=plain_model).get_piece_size()
  tok = tokenizer.SentencePiece(plain_model)
  assert tok.vocab_size == size + 1152
  for text, offset in SPECIAL.items():
    assert tok.encode(text) == [size + offset]
    assert tok.decode([size + offset]) == text
  bare = tokenizer.SentencePiece(plain_model, extra=False)
  assert bare.vocab_size == size and max(bare.encode("<loc0000>")) < size


def test_pieces_of_the_file_keep_their_ids(plain_model, full_model):
  """The file of PaliGemma is Gemma's plus the pieces in this order, so both ways agree."""
  import sentencepiece

  plain, full = tokenizer.SentencePiece(plain_model), tokenizer.SentencePiece(full_model)
  native = sentencepiece.SentencePieceProcessor(model_file=full_model)
  assert plain.vocab_size == full.vocab_size == native.get_piece_size()
  for text in (
    "detect 7",
    "<loc0012><loc0345><loc0678><loc1001> 7 ; <loc0001>x<seg099>",
    "a <loc> b",
  ):
    assert plain.encode(text) == full.encode(text) == native.encode(text)
    assert plain.decode(plain.encode(text)) == full.decode(full.encode(text)) == text


def test_gemma_sized_file_gives_the_published_ids(plain_model, tmp_path):
  from sentencepiece import sentencepiece_model_pb2 as pb

  with open(plain_model, "rb") as f:
    proto = pb.ModelProto.FromString(f.read())
  pieces = list(proto.pieces)
  at = next(i for i, p in enumerate(pieces) if p.piece == "\n")
  pieces[at], pieces[108] = pieces[108], pieces[at]
  proto = pb.ModelProto(
    pieces=pieces, trainer_spec=proto.trainer_spec, normalizer_spec=proto.normalizer_spec
  )
  for i in range(len(proto.pieces), 256_000):
    proto.pieces.add(piece=f"unused{i}", score=-1e6, type=pb.ModelProto.SentencePiece.UNUSED)
  path = tmp_path / "gemma.model"
  path.write_bytes(proto.SerializeToString())
  tok = tokenizer.SentencePiece(path)
  assert (tok.pad, tok.eos, tok.bos, tok.newline) == (0, 1, 2, [108])
  assert tok.vocab_size == 257_152
  assert tok.encode("<loc0000><loc1023><seg000><seg127>") == [256000, 257023, 257024, 257151]


def test_only_full_sets_of_pieces_are_taken(plain_model, tmp_path):
  from sentencepiece import sentencepiece_model_pb2 as pb

  with open(plain_model, "rb") as f:
    proto = pb.ModelProto.FromString(f.read())
  for i in range(5):
    proto.pieces.add(piece=f"<loc{i:04d}>", type=pb.ModelProto.SentencePiece.USER_DEFINED)
  path = tmp_path / "half.model"
  path.write_bytes(proto.SerializeToString())
  with pytest.raises(ValueError, match="some of <loc0000>..<loc1023> but not <loc0005>"):
    tokenizer.SentencePiece(path)


# U+2581 is sentencepiece's own mark of a space; surrogates are no text.
TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\u2581"), max_size=30)


@hypothesis.settings(max_examples=200, deadline=None, derandomize=True, database=None)
@hypothesis.given(text=TEXT)
def test_any_text_survives(tok, text):
  ids = tok.encode(text)
  assert tok.decode(ids) == text
  assert not any(i in (tok.bos, tok.eos, tok.pad, tok._sp.unk_id()) for i in ids)
  assert all(0 <= i < tok.vocab_size for i in ids)


def test_characters_never_seen_fall_back_to_bytes(tok):
  assert len(tok.encode("日")) == 3 and len(tok.encode("\U0001f600")) == 4
  assert tok.decode(tok.encode("日本 😀 <seg001>é")) == "日本 😀 <seg001>é"


def test_digits_are_split(tok):
  assert tok.encode("725") == [i for d in "725" for i in tok.encode(d)]
  assert len(tok.encode("725")) == 3


def test_control_ids_are_silent_and_unknown_ids_show(tok):
  seven = tok.encode("7")
  assert tok.decode([tok.bos, *seven, tok.eos, tok.pad, tok.pad]) == "7"
  assert tok.decode([*seven, tok.vocab_size, -5]) == "7\ufffd\ufffd"
  assert tok.decode([]) == ""
  assert len(tok.newline) == 1 and tok.decode(tok.newline) == "\n"


def test_training_is_deterministic(tmp_path):
  texts = ["a cat sat", "the dog sat 12", "a dog\n"] * 5
  for model_type, size in (("unigram", 400), ("bpe", 285)):
    tokenizer.train(texts, tmp_path / "a.model", size, model_type=model_type)
    tokenizer.train(list(texts), tmp_path / "b.model", size, model_type=model_type)
    assert (tmp_path / "a.model").read_bytes() == (tmp_path / "b.model").read_bytes()
  assert sorted(p.name for p in tmp_path.iterdir()) == ["a.model", "b.model"]


def test_training_errors(tmp_path):
  with pytest.raises(ValueError, match="trained on no text"):
    tokenizer.train([], tmp_path / "a.model")
  with pytest.raises(ValueError, match="vocab_size=100 is too small"):
    tokenizer.train(["abc"], tmp_path / "a.model", 100)
  with pytest.raises(ValueError, match="training a tokeniser of 5000 pieces failed"):
    tokenizer.train(["abc"], tmp_path / "a.model", 5000, model_type="bpe")


def test_files_that_are_none(tmp_path):
  with pytest.raises(ValueError, match="none.model.*No such file"):
    tokenizer.SentencePiece(tmp_path / "none.model")
  (tmp_path / "x.model").write_bytes(b"not a model at all")
  with pytest.raises(ValueError, match="x.model.*no sentencepiece model"):
    tokenizer.SentencePiece(tmp_path / "x.model")
  (tmp_path / "y.model").write_bytes(b"")
  with pytest.raises(ValueError, match="y.model.*no sentencepiece model"):
    tokenizer.SentencePiece(tmp_path / "y.model")


def test_pickles(tok):
  again = pickle.loads(pickle.dumps(tok))
  assert again.encode("detect <loc0007>") == tok.encode("detect <loc0007>")


def test_make(plain_model, tmp_path):
  tok = tokenizer.make(dict(kind="sentencepiece", path=plain_model, pad=1))
  assert tok.pad == 1
  tokenizer.train(["ab"] * 5, tmp_path / "t.model", 400)
  assert tokenizer.make(dict(path="workdir:t.model"), tmp_path).encode("ab")
  with pytest.raises(ValueError, match="needs a working directory"):
    tokenizer.make(dict(path="workdir:t.model"))
  with pytest.raises(ValueError, match="unknown tokenizer 'sentencepeice'; did you mean"):
    tokenizer.make(dict(kind="sentencepeice", path=plain_model))
  with pytest.raises(ValueError, match="processor.tokenizer 'paht'; did you mean 'path'"):
    tokenizer.make(dict(paht=plain_model))
