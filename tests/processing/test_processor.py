"""Rows of the three kinds."""

import pickle

import numpy as np
import pytest

from bigvlm.processing import processor
from bigvlm.processing.image import BadExample


def rng():
  return np.random.default_rng(0)


def make(tok, kind="prefix_lm", **over):
  cfg = dict(kind=kind, image=dict(size=(16, 24)), text_len=20) | over
  return processor.make(cfg, tokenizer=tok, image_tokens=6, grid=(2, 3))


@pytest.fixture
def example(pictures):
  return dict(
    id="e", image=pictures.scene(), prefix="detect 7", suffix="<loc0001>7", text="7 2",
    mask=np.eye(5) > 0,
  )  # fmt: skip


def test_prefix_lm(tok, example):
  p = make(tok, read_len=8)
  row = p(example, rng())
  prefix, suffix = tok.encode("detect 7"), tok.encode("<loc0001>7")
  head = [0] * 6 + [2, *prefix, *tok.newline]
  want = head + suffix + [1]
  assert row["tokens"].tolist() == want + [0] * (26 - len(want))
  n = len(suffix) + 1
  assert row["read"][:n].tolist() == list(range(len(head) - 1, len(want) - 1))
  assert row["labels"][:n].tolist() == [*suffix, 1] and row["weights"].sum() == n
  assert row["image"].shape == (1, 16, 24, 3) and row["image"].dtype == np.uint8
  assert row["image_item"].tolist() == [1] and row["bad"] == 0
  assert p.decode(row["labels"]) == "<loc0001>7"
  prompt = p.prompt(example)
  assert prompt["tokens"].tolist() == head + [0] * (26 - len(head))
  assert prompt["read"].tolist() == [len(head) - 1]
  np.testing.assert_array_equal(prompt["image"], row["image"])


def test_separator(tok, example):
  """A prompt ends with its separator, or without one with its own last word."""
  for sep, ids in (("", []), ("segment ", tok.encode("segment "))):
    p = make(tok, sep=sep)
    head = [0] * 6 + [2, *tok.encode("detect 7"), *ids]
    assert p.prompt(example)["tokens"].tolist() == head + [0] * (26 - len(head))
    assert p(example, rng())["read"][0] == len(head) - 1


def test_several_pictures(tok, example, pictures):
  """Slots without a picture have item 0; nobody sees their placeholders, the text moves up."""
  image, other = pictures.scene(), pictures.scene(40, 40)[:, ::-1]
  p = processor.make(
    dict(image=dict(size=(16, 24), count=3), text_len=20),
    tokenizer=tok,
    image_tokens=18,
    grid=(2, 3),
  )
  two = p(dict(example, image=[image, other]), rng())
  one = make(tok)(dict(example, image=image), rng())
  assert two["image"].shape == (3, 16, 24, 3) and two["image_item"].tolist() == [1, 2, 0]
  np.testing.assert_array_equal(two["image"][0], one["image"][0])
  assert two["image"][1].any() and not two["image"][2].any()
  assert two["media_index"].tolist() == [*range(18), *[-1] * 20]
  assert two["segment"].tolist() == [1] * 12 + [0] * 6 + one["segment"][6:].tolist()
  for key in ("positions", "order"):
    assert two[key][:12].tolist() == [*range(12)]
    assert two[key][18:].tolist() == [*range(12, 32)]
  np.testing.assert_array_equal(two["tokens"][18:], one["tokens"][6:])
  np.testing.assert_array_equal(two["block"][18:], one["block"][6:])
  np.testing.assert_array_equal((two["read"] - 12)[:3], one["read"][:3])
  np.testing.assert_array_equal(two["labels"], one["labels"])
  stacked = p(dict(example, image=np.stack([image, image])), rng())
  assert stacked["image_item"].tolist() == [1, 2, 0]
  assert p.prompt(dict(example, image=image))["image_item"].tolist() == [1, 0, 0]
  assert {k: (v.shape, v.dtype) for k, v in two.items()} == p.spec()
  for wrong in ([], [image] * 4):
    with pytest.raises(BadExample, match=f"e: has {len(wrong)} images, but .*count=3"):
      p(dict(example, image=wrong), rng())
  with pytest.raises(BadExample, match="has 2 images, but processor.image.count=1"):
    make(tok)(dict(example, image=[image, image]), rng())
  with pytest.raises(ValueError, match="count=2 is for kind='prefix_lm'"):
    make(tok, "contrastive", image=dict(size=16, count=2))


def test_contrastive(tok, example):
  p = make(tok, "contrastive")
  row = p(example, rng())
  ids = tok.encode("7 2")
  assert row["tokens"].tolist() == [*ids, 1] + [0] * (19 - len(ids))
  assert row["read"].tolist() == [19]
  only_text = p.prompt(dict(text="7 2"))
  assert only_text["tokens"].tolist() == row["tokens"].tolist() and not only_text["image_item"]
  np.testing.assert_array_equal(p.prompt(dict(image=example["image"]))["image"], row["image"])


def test_mask(tok, example):
  p = processor.make(dict(kind="mask", image=dict(size=10)))
  row = p(example, rng())
  assert row["mask"].shape == (10, 10, 1) and row["mask"].dtype == np.float32
  assert 0 <= row["mask"].min() < 0.2 and 0.8 < row["mask"].max() <= 1
  np.testing.assert_array_equal(p(dict(mask=np.full((10, 10, 1), 255, np.uint8)), rng())["mask"], 1)
  exact = np.random.default_rng(0).random((10, 10), np.float32)
  np.testing.assert_array_equal(p(dict(mask=exact), rng())["mask"][..., 0], exact)
  for mask in (
    np.full((4, 4), 2.0),
    np.zeros((4, 4, 3)),
    np.zeros((0, 4)),
    np.full((4, 4), np.nan),
  ):
    with pytest.raises(BadExample, match="mask"):
      p(dict(mask=mask), rng())


@pytest.mark.parametrize("kind", processor.KINDS)
def test_spec_and_blank_fit_every_row(tok, example, kind):
  p = make(tok, kind)
  p = pickle.loads(pickle.dumps(p))
  for row in (p(example, rng()), p.blank()):
    assert {k: (v.shape, v.dtype) for k, v in row.items()} == p.spec()
  blank = p.blank()
  assert blank["bad"] == 1 and not blank["weights"].any()
  if kind != "mask":
    assert blank["segment"].any(), "a row of padding alone gives NaN in a softmax"


def test_bad_examples_name_the_record(tok, example):
  p = make(tok)
  for change, text in [
    (dict(image=b"no"), "e: not an image"),
    (dict(prefix="digit " * 40), "e: the prefix takes .*text_len=20"),
    (dict(suffix=7), "e: field 'suffix' is int, not text"),
  ]:
    with pytest.raises(BadExample, match=text):
      p({**example, **change}, rng())
  for field in ("image", "prefix", "suffix"):
    with pytest.raises(BadExample, match=f"e: has no field '{field}'"):
      p({k: v for k, v in example.items() if k != field}, rng())


def test_long_answers_are_cut_and_counted(tok, example):
  row, cut = make(tok).row({**example, "suffix": "digit " * 40}, rng())
  assert cut and 1 not in row["labels"]
  assert not make(tok).row(example, rng())[1]
  assert make(tok, "contrastive").row({**example, "text": "digit " * 40}, rng())[1]


def test_decode_stops_at_eos(tok):
  p = make(tok)
  seven = tok.encode("7")
  assert p.decode([*seven, 1, *seven]) == "7"
  with pytest.raises(ValueError, match="Mask has no tokeniser"):
    processor.make(dict(kind="mask")).decode([1])


def test_image_settings(tok, pictures, example):
  wide = make(tok, image=dict(size=16, max_pixels=100))
  with pytest.raises(BadExample, match="over the limit of 100"):
    wide(example, rng())
  big = {**example, "image": pictures.encoded(pictures.scene(300, 400), "JPEG", quality=95)}
  rows = [
    make(tok, image=dict(size=48, **o))(big, rng())["image"].astype(int)
    for o in (dict(reduce=0), dict(), dict(backend="opencv"))
  ]
  for other in rows[1:]:
    assert np.abs(other - rows[0]).mean() < 2
    assert (other != rows[0]).any()


@pytest.mark.parametrize(
  "over,text",
  [
    (dict(kind="prefixlm"), "unknown processor 'prefixlm'; did you mean 'prefix_lm'"),
    (dict(text_length=3), "unknown field of processor 'text_length'; did you mean 'text_len'"),
    (
      dict(image=dict(size=3, metod="a")),
      "field of processor.image 'metod'; did you mean 'method'",
    ),
    (dict(image=dict()), "processor.image.size is missing"),
    (dict(image=dict(size=8, method="bilnear")), "did you mean 'bilinear'"),
    (dict(read_len=21), "processor.read_len=21 must lie in 0..text_len=20"),
  ],
)
def test_config_errors(tok, over, text):
  with pytest.raises(ValueError, match=text):
    make(tok, **over)


def test_tokenizer_is_needed():
  with pytest.raises(ValueError, match="processor.tokenizer is missing"):
    processor.make(dict(kind="prefix_lm", image=dict(size=8)))
