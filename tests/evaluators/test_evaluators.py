"""Evaluators against models that answer what the test wants."""

import os
import pathlib
import re
import socket
import subprocess
import sys
import threading

import numpy as np
import pytest

from bigvlm.evaluators import base, table
from bigvlm.processing import boxes, masks

SIDE = 32


class Memory(list):
  name = "memory"


class Says:
  """A model whose answer to a picture is looked up by the picture's first pixel."""

  def __init__(self, answers):
    self.answers, self.seen = list(answers), []

  def generate(self, images, prompts, *, max_new_tokens, batch_size):
    assert len(images) == len(prompts) and max_new_tokens > 0 and batch_size > 0
    numbers = [int(image[0, 0, 0]) for image in images]
    self.seen += numbers
    return [self.answers[number] for number in numbers]


class Embeds:
  """A two-tower model: a picture's direction is its first pixel, a text's its last number."""

  def __init__(self, directions, dim=16):
    self.directions, self.dim = directions, dim

  def embed_image(self, images, *, batch_size):
    return np.eye(self.dim, dtype=np.float32)[[self.directions[int(i[0, 0, 0])] for i in images]]

  def embed_text(self, texts, *, batch_size):
    numbers = [int(re.findall(r"\d+", text)[-1]) for text in texts]
    return np.eye(self.dim, dtype=np.float32)[numbers]


def picture(number):
  return np.full((SIDE, SIDE, 3), number, np.uint8)


def questions(n, **fields):
  rows = [
    dict(id=f"q/{i}", image=picture(i), prefix=f"answer {i}", suffix=str(i % 10)) for i in range(n)
  ]
  return Memory(
    row | {key: values[i] for key, values in fields.items()} for i, row in enumerate(rows)
  )


def make(kind, source, **fields):
  return table.make(dict(name="x", kind=kind, data=source, **fields))


def test_caption_counts_equal_strings():
  evaluator = make("caption", questions(4))
  metrics = evaluator.run(Says(["0", "1 ", "two", "3"]))
  # One word has no n-grams but itself: a quarter of 10 for each that is right.
  assert metrics == {"exact": 0.75, "anls": 0.75, "cider": pytest.approx(0.75 * 10 / 4)}
  assert all(type(value) is float for value in metrics.values())


@pytest.mark.parametrize("kind", ["caption", "vqa", "detection"])
def test_those_that_let_the_model_write_take_beams(kind):
  class Searches(Says):
    def generate(self, images, prompts, *, beams, length_penalty, **how):
      self.how = (beams, length_penalty)
      return super().generate(images, prompts, **how)

  source = questions(2, boxes=[[]] * 2, labels=[[]] * 2)
  for fields, how in ((dict(beams=4), (4, 0.0)), (dict(beams=2, length_penalty=0.6), (2, 0.6))):
    model = Searches(["0", "1"])
    make(kind, source, **fields).run(model)
    assert model.how == how
  with pytest.raises(ValueError, match="length_penalty is of a search; set beams as well"):
    make(kind, source, length_penalty=1.0)


def test_vqa_reports_every_kind_and_all():
  source = questions(5, kind=["which", "which", "count", "count", "largest"])
  metrics = make("vqa", source).run(Says(["0", "x", "2", "3", "x"]))
  assert metrics == {"acc": 0.6, "which": 0.5, "count": 1.0, "largest": 0.0}
  assert list(metrics) == ["acc", "which", "count", "largest"]  # the same order in every run


def test_vqa_with_the_official_score_and_many_answers():
  source = questions(2, answers=[["two"] * 4 + ["2"] * 6, ["yes"] * 10])
  model = Says(["Two.", "Yes"])
  assert make("vqa", source, score="vqa").run(model) == {"acc": 0.5}
  assert make("vqa", source).run(model) == {"acc": 0.0}


def test_examples_limits_and_predictions_are_the_first():
  source = questions(9)
  model = Says(["0", "1", "wrong"] + ["?"] * 6)
  evaluator = make("vqa", source, examples=4)
  assert evaluator.run(model) == {"acc": 0.5}
  assert sorted(model.seen) == [0, 1, 2, 3]
  records = evaluator.predictions(model, 3)
  assert [r["right"] for r in records] == [True, True, False]
  assert records[2] | dict(image=None) == dict(
    image=None, prompt="answer 2", target="2", answer="wrong", right=False,
    boxes=[], mask=None, target_boxes=[], target_mask=None,
  )  # fmt: skip
  assert records[2]["image"].dtype == np.uint8 and records[2]["image"].shape == (SIDE, SIDE, 3)


def test_detection():
  target = [[0.1, 0.2, 0.4, 0.5]]
  source = questions(4, boxes=[target] * 4, labels=[["7"]] * 4)
  right = boxes.detect([(target[0], "7")])
  shifted = boxes.detect([((0.6, 0.2, 0.9, 0.5), "7")])
  flat = "<loc0100><loc0100><loc0100><loc0200> 7"
  evaluator = make("detection", source)
  assert evaluator.run(Says([right] * 4)) == {"ap50": 1.0, "ap": 1.0}
  metrics = evaluator.run(Says([right, right, "no boxes here <loc0001>", right]))
  assert metrics["ap50"] == pytest.approx(76 / 101)  # recall 0.75 at precision 1
  # False finds after right ones in the same picture rank below the first of every picture.
  assert evaluator.run(Says([f"{right} ; {shifted}"] * 4))["ap50"] == 1.0
  # Two of the first-ranked are false; that a box without area is one, too, shows in the precision.
  expected = (51 * 1.0 + 0) / 101
  assert evaluator.run(Says([right, right, shifted, flat]))["ap50"] == pytest.approx(expected)
  assert evaluator.run(Says([flat, flat, right, right]))["ap50"] == pytest.approx(51 / 101 * 0.5)
  records = evaluator.predictions(Says([right, f"{right} ; {right}", shifted, right + "8"]), 4)
  assert [r["right"] for r in records] == [True, False, False, False]
  np.testing.assert_allclose(records[0]["boxes"][0][0], target[0], atol=1e-3)
  assert records[0]["boxes"][0][1] == records[0]["target_boxes"][0][1] == "7"


def codec_of_full_squares(path):
  """A codec with published names and tiny layers: code 0 decodes to all inside, 1 to outside."""
  width = 2
  one = {"decoder.0": (width, 4, 1), "decoder.12": (1, width, 1)}
  params = {"encoder.0.weight": np.zeros((1, 1, 4, 4)), "_vq_vae._embedding": np.zeros((128, 4))}
  params["_vq_vae._embedding"][1:] = 1
  for name, (o, i, k) in one.items():
    params |= {f"{name}.weight": np.ones((o, i, k, k)), f"{name}.bias": np.zeros(o)}
  params["decoder.12.weight"] *= -1
  params["decoder.12.bias"] = np.array([0.5])
  for layer in (2, 3):
    for part, k in ((0, 3), (2, 3), (4, 1)):
      params[f"decoder.{layer}.net.{part}.weight"] = np.zeros((width, width, k, k))
      params[f"decoder.{layer}.net.{part}.bias"] = np.zeros(width)
  for layer in (4, 6, 8, 10):
    params[f"decoder.{layer}.weight"] = np.ones((width, width, 4, 4))
    params[f"decoder.{layer}.bias"] = np.zeros(width)
  np.savez(path, **{key: value.astype(np.float32) for key, value in params.items()})


def test_segmentation(tmp_path):
  codec = tmp_path / "codec.npz"
  codec_of_full_squares(codec)
  assert (masks.decode(masks.load(str(codec)), np.zeros((1, 16), int)) > 0).all()
  mask = np.zeros((SIDE, SIDE), bool)
  mask[8:24, 8:24] = True
  box = (0.25, 0.25, 0.75, 0.75)
  source = questions(5, mask=[mask] * 5, boxes=[[box]] * 5, labels=[["7"]] * 5)
  full = boxes.segment([(box, [0] * 16, "7")])
  most = boxes.segment([((0.25, 0.25, 0.5625, 0.75), [0] * 16, "7")])
  empty = boxes.segment([(box, [1] * 16, "7")])
  evaluator = make("segmentation", source, codec=str(codec))
  metrics = evaluator.run(Says([full, most, empty, boxes.detect([(box, "7")]), "seven"]))
  assert metrics == pytest.approx(
    dict(miou=1.625 / 5, ciou=416 / 1280, p50=2 / 5, p70=1 / 5, p90=1 / 5, box50=4 / 5)
  )
  records = evaluator.predictions(Says([full, empty] + ["?"] * 3), 2)
  assert [r["right"] for r in records] == [True, False]
  assert (records[0]["mask"] == mask).all() and (records[0]["target_mask"] == mask).all()
  with pytest.raises(ValueError, match="'codec' is missing"):
    make("segmentation", source)


def test_retrieval_both_ways_and_with_several_captions():
  source = Memory(dict(id=str(i), image=picture(i), text=[f"a {i}", f"b {i}"]) for i in range(12))
  metrics = make("retrieval", source).run(Embeds(range(12)))
  assert metrics == {f"{way}_r{k}": 1.0 for way in ("i2t", "t2i") for k in (1, 5, 10)}
  swapped = [1, 0, *range(2, 12)]
  metrics = make("retrieval", source).run(Embeds(swapped))
  assert metrics["i2t_r1"] == metrics["t2i_r1"] == pytest.approx(10 / 12)
  records = make("retrieval", source).predictions(Embeds(swapped), 3)
  assert [(r["answer"], r["right"]) for r in records] == [
    ("a 1", False),
    ("a 0", False),
    ("a 2", True),
  ]


def test_retrieval_with_repeated_captions():
  source = Memory(dict(id=str(i), image=picture(i), text=f"{i // 2}") for i in range(4))
  model = Embeds([0, 0, 1, 1])
  assert make("retrieval", source).run(model)["i2t_r1"] == 0.0  # ties count against the model
  assert make("retrieval", source, same_text=True).run(model)["i2t_r1"] == 1.0


def test_zero_shot():
  source = Memory(dict(id=str(i), image=picture(i), label=i) for i in range(6))
  fields = dict(classes=[f"class {i}" for i in range(6)], templates=("{}", "a {}"))
  metrics = make("zeroshot", source, **fields).run(Embeds([0, 1, 2, 3, 5, 4]))
  assert metrics["top1"] == pytest.approx(4 / 6)
  record = make("zeroshot", source, **fields).predictions(Embeds([1] * 6), 1)[0]
  assert (record["answer"], record["target"], record["right"]) == ("class 1", "class 0", False)
  with pytest.raises(ValueError, match="label 6, but there are 2 classes"):
    labels = Memory([source[0] | dict(label=6)])
    make("zeroshot", labels, classes=("0", "1")).run(Embeds([0]))
  with pytest.raises(ValueError, match="needs {} once"):
    make("zeroshot", source, classes=("0", "1"), templates=("a photo",))


def test_perplexity_is_over_tokens():
  class Scores:
    def score(self, images, prompts, answers, *, batch_size):
      return np.array([-np.log(2.0) * 3, -np.log(2.0) * 1])[: len(images)]

    @staticmethod
    def processor(example, rng):
      return dict(weights=np.array([1.0, 1, 1, 0] if example["suffix"] == "0" else [1.0, 0, 0, 0]))

  metrics = make("perplexity", questions(2)).run(Scores())
  assert metrics == pytest.approx(dict(nll=2 * np.log(2), perplexity=2.0))


def test_a_bad_image_is_left_out_and_named(capsys):
  source = questions(4)
  source[1]["image"] = b"no image at all"
  assert make("vqa", source).run(Says("0123")) == {"acc": 1.0}
  err = capsys.readouterr().err
  assert "1 of 4 examples are left out" in err and "q/1" in err
  with pytest.raises(ValueError, match="none of its 1 examples can be read"):
    make("vqa", Memory([source[1]])).run(Says("0"))


def test_mistakes_in_a_config_are_named():
  with pytest.raises(ValueError, match="did you mean 'detection'"):
    table.make(dict(name="d", kind="detecton"))
  with pytest.raises(ValueError, match="evaluator 'd': unknown field 'max_tokens'.*max_new_tokens"):
    table.make(dict(name="d", kind="vqa", data={}, max_tokens=3))
  with pytest.raises(ValueError, match="evaluator 'd': field 'data' is missing"):
    table.make(dict(name="d", kind="vqa"))
  with pytest.raises(ValueError, match="examples=9, but memory has 3"):
    make("vqa", questions(3), examples=9).run(Says("012"))
  with pytest.raises(ValueError, match="q/0 has no field 'boxes'"):
    make("detection", questions(1)).run(Says("0"))

  class Refuses:
    def generate(self, *args, **kwargs):
      raise ValueError("the prefix takes 41 tokens")

  with pytest.raises(ValueError, match="evaluator 'x': the prefix takes 41 tokens"):
    make("vqa", questions(1)).run(Refuses())


@pytest.mark.parametrize("n", [1, 7, 8, 255, 256, 257, 1000])
@pytest.mark.parametrize("count", [1, 2, 3, 8])
def test_slices_of_processes_hold_each_example_once(n, count):
  slices = [list(base.chunks(n, index, count)) for index in range(count)]
  assert len({tuple(map(len, s)) for s in slices}) == 1  # equally many steps for all
  real = [i for s in slices for part in s for i, is_real in part if is_real]
  assert sorted(real) == list(range(n))


class Together:
  """Threads that act as processes: their all-gather waits for all."""

  def __init__(self, count):
    self.count, self.local = count, threading.local()
    self.barrier, self.table = threading.Barrier(count, timeout=30), [None] * count

  def processes(self):
    return self.local.index, self.count

  def allgather(self, x):
    self.table[self.local.index] = x
    self.barrier.wait()
    out = np.stack(self.table)
    self.barrier.wait()
    return out

  def run(self, work):
    out = [None] * self.count

    def one(index):
      self.local.index = index
      out[index] = work(index)

    threads = [threading.Thread(target=one, args=(i,)) for i in range(self.count)]
    for thread in threads:
      thread.start()
    for thread in threads:
      thread.join()
    return out


@pytest.mark.parametrize("count", [2, 3])
def test_metrics_are_the_same_for_any_number_of_processes(count, monkeypatch):
  source = questions(7, kind=["a", "b", "a", "b", "a", "b", "a"])
  answers = ["0", "1", "?", "3", "?", "?", "6"]
  alone = make("vqa", source).run(Says(answers))
  pairs = Memory(dict(id=str(i), image=picture(i), text=[f"{i}"] * (1 + i % 2)) for i in range(7))
  found_alone = make("retrieval", pairs).run(Embeds([0, 2, 1, 3, 4, 5, 6]))

  together = Together(count)
  monkeypatch.setattr(base, "processes", together.processes)
  monkeypatch.setattr(base, "gather", lambda part: base.exchange(part, together.allgather))
  models = [Says(answers) for _ in range(count)]
  results = together.run(lambda index: make("vqa", source).run(models[index]))
  assert results == [alone] * count
  assert {len(model.seen) for model in models} == {-(-7 // count)}  # equally many, all together 7
  assert set().union(*(model.seen for model in models)) == set(range(7))
  found = together.run(lambda _: make("retrieval", pairs).run(Embeds([0, 2, 1, 3, 4, 5, 6])))
  assert found == [found_alone] * count
  records = together.run(lambda i: make("vqa", source).predictions(models[i], 3))
  assert [[r["answer"] for r in part] for part in records] == [["0", "1", "?"]] * count


_TWO = """
import sys
import jax
jax.distributed.initialize(sys.argv[1], 2, int(sys.argv[2]))
import numpy as np
from bigvlm.evaluators import base
me = base.processes()[0]
parts = base.gather([dict(i=me, x=0.1 * 3, v=np.arange(me + 2, dtype=np.float32))] * (me + 1))
assert [len(part) for part in parts] == [1, 2], parts
assert parts[0][0]["x"] == 0.1 * 3 and parts[1][1]["v"].tolist() == [0, 1, 2], parts
print("gathered")
"""


def test_gather_between_two_real_processes():
  with socket.socket() as s:
    s.bind(("localhost", 0))
    address = f"localhost:{s.getsockname()[1]}"
  root = str(pathlib.Path(__file__).resolve().parents[2])
  env = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": "", "PYTHONPATH": root}
  command = [sys.executable, "-c", _TWO, address]
  runs = [
    subprocess.Popen([*command, str(i)], env=env, text=True, stdout=-1, stderr=subprocess.STDOUT)
    for i in range(2)
  ]
  for run in runs:
    out, _ = run.communicate(timeout=120)
    assert run.returncode == 0 and "gathered" in out, out
