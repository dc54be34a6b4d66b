"""Rows for encoder-decoders."""

import numpy as np
import pytest

from bigvlm.processing import processor
from bigvlm.processing.image import BadExample
from bigvlm.types import to_batch


def make(tok, image_tokens=6, **over):
  cfg = dict(kind="seq2seq", image=dict(size=(16, 24)), text_len=20, target_len=8) | over
  return processor.make(cfg, tokenizer=tok, image_tokens=image_tokens, grid=(2, 3))


@pytest.fixture
def example(pictures):
  return dict(id="e", image=pictures.scene(), prefix="detect 7", suffix="<loc0001>7")


def test_the_encoder_reads_picture_and_prefix_and_the_decoder_the_suffix(tok, example):
  p = make(tok)
  row = p(example, np.random.default_rng(0))
  prefix, suffix = tok.encode("detect 7"), tok.encode("<loc0001>7")
  n, k = 6 + len(prefix) + 1, len(suffix) + 1
  assert row["tokens"].tolist() == [0] * 6 + [*prefix, 1] + [0] * (26 - n)
  assert row["segment"].tolist() == [1] * n + [0] * (26 - n) and not row["block"].any()
  assert row["media_index"].tolist() == [*range(6)] + [-1] * 20
  assert row["target_tokens"].tolist() == [0, *suffix] + [0] * (8 - k)
  assert row["target_segment"].tolist() == [1] * k + [0] * (8 - k)
  assert row["target_block"].tolist() == [*range(8)]
  assert row["labels"].tolist() == [*suffix, 1] + [0] * (8 - k)
  assert row["weights"].tolist() == [1.0] * k + [0.0] * (8 - k)
  assert p.decode(row["labels"]) == "<loc0001>7"
  asked = p.prompt(example)
  np.testing.assert_array_equal(asked["tokens"], row["tokens"])
  assert asked["target_tokens"].tolist() == [0] and asked["target_read"].tolist() == [0]
  assert asked["labels"].shape == (1,) and asked["weights"].tolist() == [0.0]


def test_rows_have_the_spec_and_become_a_batch_with_a_target(tok, example):
  p = make(tok)
  row = p(example, np.random.default_rng(0))
  assert {k: (v.shape, v.dtype) for k, v in row.items()} == p.spec()
  blank = p.blank()
  assert blank["bad"] == 1 and not blank["weights"].any()
  batch = to_batch({k: v[None] for k, v in row.items()})
  assert batch.target.tokens.shape == (1, 8) and batch.text.tokens.shape == (1, 26)
  assert batch.media["image"].pixels.shape == (1, 1, 16, 24, 3)
  assert set(batch.extra) == {"bad"}


def test_a_model_of_text_alone_gets_no_picture(tok):
  p = make(tok, image_tokens=0)
  row = p(dict(prefix="how many 7s ?", suffix="2"), np.random.default_rng(0))
  assert "image" not in row and row["tokens"].shape == (20,)
  assert row.keys() == p.blank().keys()


def test_a_long_suffix_is_cut_and_a_long_prefix_is_refused(tok, example):
  p = make(tok, target_len=2)
  row, cut = p.row(example, np.random.default_rng(0))
  assert cut and row["labels"].tolist() == tok.encode("<loc0001>7")[:2]
  with pytest.raises(BadExample, match="text_len=3"):
    make(tok, text_len=3)(example, np.random.default_rng(0))
