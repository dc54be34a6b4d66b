"""The report of a run and `bigvlm predict`."""

import json
import re

import numpy as np
import pytest
from PIL import Image

from bigvlm.evaluators import base
from bigvlm.processing import boxes
from bigvlm.trainers import predict, report

SUMMARY = dict(
  seconds=754.2,
  stages=[
    dict(name="contrastive", steps=100, seconds=50.5,
         metrics={"train/loss": 1.5, "retrieval/i2t_r1": 0.25}),
    dict(name="low", steps=200, seconds=300.0, metrics={"train/loss": 0.5, "vqa/which": 0.5}),
    dict(name="high", steps=50, seconds=400.0, metrics={"vqa/which": 0.75, "text/perplexity": 3.5}),
  ],
)  # fmt: skip


def record(right=True, evaluator="vqa", **fields):
  image = np.full((16, 16, 3), 90, np.uint8)
  fields = dict(prompt="detect 7", target="7", answer="7" if right else "1") | fields
  return base.prediction(image=image, right=right, **fields) | dict(evaluator=evaluator)


def fill(workdir, lines=()):
  workdir.mkdir()
  (workdir / "metrics.jsonl").write_text("".join(line + "\n" for line in lines))
  (workdir / "config.json").write_text(json.dumps(dict(name="quickstart", seed=3)))
  (workdir / "summary.json").write_text(json.dumps(SUMMARY))


def test_report_has_tables_and_pictures(workdir):
  lines = [json.dumps({"stage": "low", "step": s, "train/loss": 2.0 / s}) for s in range(1, 9)]
  fill(workdir, [*lines, '{"stage": "low", "step": 9, "train/loss": "nan"}', '{"stage": "lo'])
  report.write_report(
    workdir, SUMMARY, [record(), record(right=False), record(evaluator="caption")]
  )
  text = (workdir / "report.md").read_text()
  assert text.startswith("# quickstart\n") and "350 steps, 0:12:34" in text
  assert "| contrastive | 100 | 50.5 | 1.5 |" in text
  assert "| vqa/which |  | 0.5 | 0.75 (+0.25) |" in text
  assert "Wrong among the first examples of each evaluator: vqa 1 of 2; caption 0 of 1." in text
  assert "bigvlm train configs/quickstart.py\n" in text and "seed 3" in text
  for name in re.findall(r"!\[.*\]\((.*)\)", text):
    assert Image.open(workdir / name).size[0] > 200
  assert {"curves.png", "predictions.png", "mistakes.png"} == set(
    re.findall(r"\((\w+\.png)\)", text)
  )
  assert str(workdir) not in text  # relative paths: the folder can be moved


def test_what_was_measured_on_the_way_lies_between_the_ends_of_stages():
  lines = [{"stage": "high", "step": s, "vqa/which": v} for s, v in ((10, 0.6), (50, 0.75))]
  lines += [{"stage": "high", "step": 20, "vqa/which": "nan"}, {"stage": "gone", "step": 1}]
  panels = [panel for row in report.plots(SUMMARY["stages"], lines) for panel in row]
  (vqa,) = (panel for panel in panels if panel["title"].startswith("vqa"))
  assert vqa["series"] == {"which": ([1, 1.2, 2], [0.5, 0.6, 0.75])}


def test_what_is_no_rate_has_a_panel_of_its_own():
  metrics = {"caption/exact": 0.5, "caption/cider": 3.2}
  stages = [dict(name="low", steps=1, metrics=metrics)]
  panels = {p["title"].split(",")[0]: p for row in report.plots(stages, []) for p in row}
  assert list(panels["caption"]["series"]) == ["exact"] and "limits" in panels["caption"]
  assert list(panels["caption/cider"]["series"]) == ["cider"]
  assert "limits" not in panels["caption/cider"]


def test_each_evaluator_is_shown_after_the_last_stage_that_ran_it(workdir):
  fill(workdir)
  report.save_records(workdir, "low", [record(right=False), record(evaluator="caption")])
  report.save_records(workdir, "high", [record(right=False)])
  report.write(workdir)
  text = (workdir / "report.md").read_text()
  assert "vqa after high 1 of 1; caption after low 0 of 1." in text


def test_report_without_predictions_or_metrics(workdir):
  report.write_report(workdir, dict(seconds=1, stages=[]))
  text = (workdir / "report.md").read_text()
  assert "0 stages" in text and ".png" not in text
  assert [p.name for p in workdir.iterdir()] == ["report.md"]


def test_pictures_of_an_earlier_report_do_not_stay(workdir):
  fill(workdir)
  report.write_report(workdir, SUMMARY, [record(), record(right=False)])
  report.write_report(workdir, SUMMARY, [record()])
  assert (workdir / "predictions.png").exists() and not (workdir / "mistakes.png").exists()
  assert "mistakes.png" not in (workdir / "report.md").read_text()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), "0.5", None, True])
def test_metrics_must_be_finite_numbers(workdir, value):
  stages = [dict(name="low", steps=1, seconds=1.0, metrics={"vqa/which": value})]
  with pytest.raises(ValueError, match="stage 'low': metric 'vqa/which' is"):
    report.write_report(workdir, dict(seconds=1, stages=stages))


def test_kept_predictions_come_back_and_make_the_report_again(workdir):
  fill(workdir)
  mask = np.eye(16, dtype=bool)
  kept = [record(mask=mask, boxes=[((0, 0, 0.5, 0.5), "7")]), record(right=False, target_mask=mask)]
  report.save_records(workdir, "low", kept)
  back = report.load_records(workdir, "low")
  for a, b in zip(kept, back, strict=True):
    assert (a["image"] == b["image"]).all() and a["right"] == b["right"]
  assert (back[0]["mask"] == mask).all() and back[0]["mask"].dtype == bool
  assert back[0]["boxes"] == [[[0, 0, 0.5, 0.5], "7"]] and back[1]["mask"] is None
  assert report.load_records(workdir, "high") == []
  report.write(workdir)
  first = (workdir / "report.md").read_bytes(), (workdir / "predictions.png").read_bytes()
  report.write(workdir)
  assert first == ((workdir / "report.md").read_bytes(), (workdir / "predictions.png").read_bytes())


def test_mistakes_are_spread_over_evaluators():
  wrong = [record(False, "a") | dict(title="a") for _ in range(5)]
  wrong += [record(False, "b") | dict(title="b") for _ in range(2)]
  assert [r["title"] for r in report._spread(wrong, 4)] == ["a", "a", "b", "b"]


class Answers:
  def __init__(self, answer):
    self.answer, self.asked = answer, None

  def generate(self, images, prompts, *, max_new_tokens, batch_size):
    self.asked = images, prompts
    return [self.answer]


@pytest.fixture
def picture(tmp_path):
  path = tmp_path / "my.png"
  Image.new("RGB", (32, 24), (90, 90, 90)).save(path)
  return path


FOUND = boxes.detect([((0.25, 0.25, 0.75, 0.75), "7")])


def test_predict_prints_and_draws_beside_the_picture(picture, capsys):
  before = picture.read_bytes()
  model = Answers(FOUND)
  assert predict.predict(picture.parent, picture, "detect 7", model=model) == FOUND
  assert capsys.readouterr().out == FOUND + "\n"
  assert model.asked[0][0].shape == (24, 32, 3) and model.asked[1] == ["detect 7"]
  drawn = Image.open(picture.with_name("my.answer.png"))
  assert drawn.size == (768, 576) and len(drawn.getcolors(1 << 20)) > 2
  assert picture.read_bytes() == before


def test_predict_draws_to_out_even_without_boxes(picture, tmp_path):
  predict.predict(tmp_path, picture, "caption", tmp_path / "drawn.png", model=Answers("7 2"))
  assert (tmp_path / "drawn.png").exists() and not picture.with_name("my.answer.png").exists()
  predict.predict(tmp_path, picture, "caption", model=Answers("7 2"))
  assert not picture.with_name("my.answer.png").exists()


def test_the_codec_is_the_one_that_the_config_names(workdir):
  workdir.mkdir()
  path = workdir / "config.json"
  assert predict.codec_of(workdir) is None
  path.write_text(json.dumps(dict(prepare=dict(codec=dict(config="mask_codec", path="my.npz")))))
  assert predict.codec_of(workdir) == workdir / "my.npz"
  source = dict(kind="digits", codec="workdir:other.npz")
  path.write_text(json.dumps(dict(stages=[dict(data=dict(sources=[source]))])))
  assert predict.codec_of(workdir) == workdir / "other.npz"
  path.write_text(json.dumps(dict(stages=[dict(evals=[dict(codec="there/vae.npz")])])))
  assert str(predict.codec_of(workdir)) == "there/vae.npz"


def test_a_mask_without_its_codec_is_told(picture, tmp_path, capsys):
  answer = boxes.segment([((0.25, 0.25, 0.75, 0.75), [3] * 16, "7")])
  predict.predict(tmp_path, picture, "segment 7", model=Answers(answer))
  assert "names no codec" in capsys.readouterr().err
  assert picture.with_name("my.answer.png").exists()  # its box is drawn


def test_predict_names_what_is_wrong(picture, tmp_path):
  model = Answers("7")
  with pytest.raises(ValueError, match="prompt is empty"):
    predict.predict(tmp_path, picture, "  ", model=model)
  with pytest.raises(ValueError, match=r"absent\.png.*No such file"):
    predict.predict(tmp_path, tmp_path / "absent.png", "caption", model=model)
  words = tmp_path / "words.png"
  words.write_text("no picture")
  with pytest.raises(ValueError, match=r"words\.png': not an image"):
    predict.predict(tmp_path, words, "caption", model=model)
  linked = tmp_path / "linked.png"
  linked.symlink_to(picture)
  for out in (picture, linked, picture.parent / "." / "my.png"):
    with pytest.raises(ValueError, match="never overwritten"):
      predict.predict(tmp_path, picture, "caption", out, model=model)
  with pytest.raises(ValueError, match="is no folder"):
    predict.predict(tmp_path, picture, "caption", tmp_path / "no" / "a.png", model=model)
