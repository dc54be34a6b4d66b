"""Samples, beams, stop strings and streams of a whole checkpoint, as people call them."""

import pathlib

import numpy as np
import pytest
from PIL import Image

import bigvlm
from bigvlm.sampling import Sampling

ROOT = pathlib.Path(__file__).resolve().parents[1] / "fixtures" / "processors"
PROMPTS = ["ocr", "answer en what is this the Park", "caption en"]


@pytest.fixture(scope="module")
def ask():
  model = bigvlm.load(ROOT / "human_paligemma")
  image = Image.open(ROOT / "pictures" / "rgb.png")

  def answers(prompts=tuple(PROMPTS), n=6, **how):
    return model.answers([image] * len(prompts), list(prompts), max_new_tokens=n, **how)

  answers.model, answers.image = model, image
  return answers


def test_answers_are_what_generate_says_with_the_log_probability_of_each_token(ask):
  found = ask()
  texts = ask.model.generate([ask.image] * 3, PROMPTS, max_new_tokens=6)
  assert [one[0].text for one in found] == texts
  for (answer,) in found:
    assert len(answer.ids) == len(answer.logp) <= 6 and max(answer.logp) <= 0


def test_samples_differ_and_their_seed_gives_them_again(ask):
  how = dict(samples=4, sampling=Sampling(temperature=1.5))
  found = ask(**how)
  assert [len(one) for one in found] == [4, 4, 4]
  assert len({a.text for one in found for a in one}) > 3
  assert ask(**how) == found
  assert ask(**how, seed=1) != found


def test_only_the_most_probable_left_is_greedy(ask):
  assert ask(sampling=Sampling(temperature=1.0, top_k=1)) == ask()


def test_a_stream_tells_the_answers_piece_by_piece(ask):
  told = {n: [] for n in range(3)}
  found = ask(n=20, on_text=lambda n, text: told[n].append(text))
  assert ["".join(told[n]) for n in range(3)] == [one[0].text for one in found]
  assert max(map(len, told.values())) > 1
  assert [one[0].text for one in found] == [one[0].text for one in ask(n=20)]


def test_a_stop_string_cuts_and_is_never_told(ask):
  whole = max((one[0].text for one in ask(n=20)), key=len)
  stop = whole[len(whole) // 2 :][:3]
  told = {n: "" for n in range(3)}

  def on_text(n, text):
    told[n] += text

  found = ask(n=20, stop=[stop], on_text=on_text)
  for n, (answer,) in enumerate(found):
    full = ask(n=20)[n][0].text
    assert answer.text == full.split(stop)[0] == told[n]
  cut = next(a for (a,), (b,) in zip(found, ask(n=20), strict=True) if a.text != b.text)
  assert stop in ask.model.processor.decode(np.array(cut.ids))
  assert stop not in ask.model.processor.decode(np.array(cut.ids[:-1]))
  again = ask(n=20, stop=[stop], samples=2)
  assert [one[1].text for one in again] == [one[0].text for one in found]


def test_a_beam_is_at_least_as_probable_as_greedy(ask):
  for (wide,), (narrow,) in zip(ask(beams=4), ask(beams=1), strict=True):
    assert wide.logp[0] >= narrow.logp[0] - 1e-5


def test_options_that_do_not_go_together(ask):
  with pytest.raises(ValueError, match="beams find one answer and do not sample"):
    ask(beams=2, samples=2)
  with pytest.raises(ValueError, match="on_text follows one answer"):
    ask(samples=2, on_text=print)
