"""Schedules against numbers worked out by hand."""

import math
import re

import pytest

from bigvlm.trainers import schedule


def values(cfg, total, steps):
  fn = schedule.make(cfg, total)
  return [float(fn(step)) for step in steps]


def test_cosine_with_a_warm_up_in_steps():
  got = values(dict(kind="cosine", warmup=10), 110, [0, 5, 10, 60, 110, 200])
  assert got == pytest.approx([0.0, 0.5 * _cos(0.0), 1.0, 0.5, 0.0, 0.0], abs=1e-6)


def _cos(progress):
  return 0.5 * (1 + math.cos(math.pi * progress))


def test_warm_up_as_a_fraction_is_of_the_stage():
  got = values(dict(kind="constant", warmup=0.1), 200, [0, 10, 20, 199])
  assert got == pytest.approx([0.0, 0.5, 1.0, 1.0])


def test_a_whole_number_of_warm_up_may_be_written_as_a_float():
  assert values(dict(kind="constant", warmup=4.0), 10, [1]) == pytest.approx([0.25])


def test_linear_ends_where_it_is_told_to():
  got = values(dict(kind="linear", end=0.2), 10, [0, 5, 10])
  assert got == pytest.approx([1.0, 0.6, 0.2])


def test_cosine_ends_where_it_is_told_to():
  assert values(dict(kind="cosine", end=0.1), 10, [5, 10]) == pytest.approx([0.55, 0.1])


def test_rsqrt_falls_by_its_timescale_and_cools_down_to_zero():
  cfg = dict(kind="rsqrt", warmup=100, timescale=300, cooldown=200)
  got = values(cfg, 2000, [50, 100, 400, 1000, 1900, 2000])
  want = [0.5, 1.0, 1 / math.sqrt(2), 0.5, 0.5 / math.sqrt(1 + 1800 / 300), 0.0]
  assert got == pytest.approx(want, rel=1e-5, abs=1e-7)


def test_constant_with_cooldown():
  got = values(dict(kind="constant", cooldown=0.25), 40, [0, 29, 30, 35, 40])
  assert got == pytest.approx([1.0, 1.0, 1.0, 0.5, 0.0])


def test_steps_hold_a_factor_until_the_next():
  cfg = dict(kind="steps", warmup=10, steps=((0.8, 0.316), (0.9, 0.1)))
  got = values(cfg, 1000, [5, 10, 799, 800, 899, 900, 999])
  assert got == pytest.approx([0.5, 1.0, 1.0, 0.316, 0.316, 0.1, 0.1])
  # In steps, the last before the end of a cool-down.
  got = values(dict(kind="steps", steps=((4, 0.5),), cooldown=2), 10, [3, 4, 8, 9])
  assert got == pytest.approx([1.0, 0.5, 0.5, 0.25])


def test_a_group_changes_only_what_it_names():
  cfg = dict(kind="cosine", warmup=2, groups=(("a/.*", dict(warmup=8)),))
  default, ((pattern, slow),) = schedule.groups(cfg, 10)
  assert pattern == "a/.*"
  assert float(default(2)) == pytest.approx(1.0)
  assert float(slow(4)) == pytest.approx(0.5)
  assert float(slow(9)) == pytest.approx(_cos(0.5))


@pytest.mark.parametrize(
  ("cfg", "said"),
  [
    (dict(kind="cosin"), "schedule.kind: unknown schedule 'cosin'; did you mean 'cosine'"),
    (dict(kind="cosine", warmpu=3), "unknown schedule field 'warmpu'; did you mean 'warmup'"),
    (dict(kind="cosine", warmup=11), "schedule.warmup=11 is 11 steps, but the stage has 10"),
    (dict(kind="cosine", cooldown=-0.5), "schedule.cooldown=-0.5 is -5 steps"),
    (dict(kind="steps"), "schedule.steps=(), but kind='steps': kind 'steps' has some"),
    (dict(kind="cosine", steps=((2, 0.1),)), "but kind='cosine': kind 'steps' has some, others"),
    (dict(kind="steps", steps=((11, 0.1),)), "schedule.steps[0]=11 is 11 steps, but the stage has"),
    (dict(kind="steps", steps=((0.4, 0.5), (3, 0.1))), "of 10 steps they are not in order"),
  ],
)
def test_errors_name_the_field(cfg, said):
  with pytest.raises(ValueError, match=re.escape(said)):
    schedule.make(cfg, 10)
