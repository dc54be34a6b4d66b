"""The loader: one order for any number of hosts, workers and threads; bad rows stay."""

import hashlib
import json
import time

import numpy as np
import pytest

from bigvlm.data import loader, mixture, sources
from bigvlm.processing import processor, tokenizer
from bigvlm.processing.image import BadExample

BATCH = 16


@pytest.fixture(scope="module")
def tok(tmp_path_factory):
  path = tmp_path_factory.mktemp("tok") / "t.model"
  return tokenizer.train(["what is it", "0123456789"] * 4, path, 320)


@pytest.fixture(scope="module")
def proc(tok):
  cfg = dict(kind="prefix_lm", image=dict(size=8), text_len=12)
  return processor.make(cfg, tokenizer=tok, image_tokens=4, grid=(2, 2))


def examples(n: int, seed: int = 0, bad=()) -> list[dict]:
  rng = np.random.default_rng(seed)
  return [
    dict(
      image=b"broken" if i in bad else rng.integers(0, 256, (12, 14, 3), dtype=np.uint8),
      prefix="what",
      suffix=str(i),
    )
    for i in range(n)
  ]


def mixed(**over) -> mixture.Mixture:
  """Two sources with random augmentation; the records 3 and 30 of the first are broken."""
  ops = (dict(op="inception_crop", size=8), dict(op="flip_lr", p=0.5))
  return mixture.make(
    dict(
      sources=(
        dict(kind="memory", examples=examples(40, 0, (3, 30)), name="a", weight=0.7, ops=ops),
        dict(kind="memory", examples=examples(7, 1), name="b", weight=0.3),
      )
    )
    | over
  )


LENIENT = dict(policy="skip", max_rate=0.5)


def make(proc, data=None, **over) -> loader.Loader:
  options = dict(batch_size=BATCH, seed=5, threads=0, bad_records=LENIENT) | over
  return loader.train_loader(data or mixed(), proc, **options)


def digest(arrays: dict) -> str:
  """sha256 of all fields of a batch, ids and pixels included."""
  out = hashlib.sha256()
  for key in sorted(arrays):
    out.update(key.encode() + str(arrays[key].dtype).encode() + str(arrays[key].shape).encode())
    out.update(np.ascontiguousarray(arrays[key]).tobytes())
  return out.hexdigest()


def join(parts: list[dict]) -> dict:
  """The global batch: row j of process i is row j * hosts + i of it."""
  return {
    k: np.stack([p[k] for p in parts], 1).reshape(BATCH, *parts[0][k].shape[1:]) for k in parts[0]
  }


def global_batches(proc, steps, hosts=1, state=None, **over):
  """Global batches, put together from the slices of all hosts."""
  loaders = [make(proc, process_index=i, process_count=hosts, **over) for i in range(hosts)]
  out = []
  for it in loaders:
    it.restore(state or {"step": 0})
  for _ in range(steps):
    parts = [next(it) for it in loaders]
    out.append(join(parts))
  for it in loaders:
    it.close()
  return out


STEPS = 6


@pytest.fixture(scope="module")
def straight(proc):
  """Digests of the first batches of one host without threads and workers."""
  return [digest(b) for b in global_batches(proc, STEPS)]


@pytest.mark.parametrize("hosts", [2, 4, 8])
def test_same_batches_for_any_number_of_hosts(proc, straight, hosts):
  got = global_batches(proc, STEPS, hosts, threads=2)
  assert [digest(b) for b in got] == straight


@pytest.mark.parametrize("threads,prefetch", [(1, 1), (4, 2), (3, 0)])
def test_same_batches_for_any_number_of_threads(proc, straight, threads, prefetch):
  got = global_batches(proc, STEPS, threads=threads, prefetch=prefetch)
  assert [digest(b) for b in got] == straight


@pytest.mark.parametrize("workers,hosts", [(4, 1), (1, 2)])
def test_same_batches_for_any_number_of_workers(proc, straight, capfd, workers, hosts):
  """Their state fits other numbers of workers and hosts, and what they met is reported here."""
  loaders = [
    make(proc, process_index=i, process_count=hosts, workers=workers, threads=1)
    for i in range(hosts)
  ]
  plain, states = make(proc), []
  for step in range(STEPS):
    states.append(loaders[0].state())
    assert digest(join([next(it) for it in loaders])) == straight[step]
    next(plain)
  found = {
    what: {name: sum(it.counters[what][name] for it in loaders) for name in ("a", "b")}
    for what in ("bad", "cut")
  }
  for it in loaders:
    it.close()
  assert found == plain.counters and found["bad"]["a"] > 0
  assert "bad record, weight 0: a[3]: not an image" in capfd.readouterr().err
  assert states[2]["step"] == 2
  for other in (1, 4):
    got = global_batches(proc, 2, other, state=states[2])
    assert [digest(b) for b in got] == straight[2:4]


def test_the_seed_changes_order_and_augmentation(proc, straight):
  other = global_batches(proc, 1, seed=6)[0]
  first = global_batches(proc, 1)[0]
  assert digest(first) == straight[0]
  assert (other["ids"] != first["ids"]).any()


def test_same_record_is_augmented_anew_each_time(proc):
  seen = {}
  for batch in global_batches(proc, 12):
    for key, image in zip(batch["ids"].tolist(), batch["image"], strict=True):
      if key[0] == 0 and key[1] not in (3, 30):
        seen.setdefault(key[1], set()).add(image.tobytes())
  assert sum(len(s) > 1 for s in seen.values()) > 30


def test_every_epoch_has_each_record_once_in_another_order(proc):
  data = mixture.Mixture([sources.Memory(examples(24))])
  batches = global_batches(proc, 6, data=data)
  order = np.concatenate([b["ids"][:, 1] for b in batches]).reshape(4, 24)
  for epoch in order:
    assert sorted(epoch) == list(range(24))
  assert len({tuple(epoch) for epoch in order}) == 4


def test_large_sources_are_shuffled_whole_too(proc):
  class Big:
    name = "big"

    def __len__(self):
      return 5000

    def __getitem__(self, i):
      return dict(mask=np.zeros((2, 2)))

  masks = processor.make(dict(kind="mask", image=dict(size=2)))
  it = make(masks, mixture.Mixture([Big()]), batch_size=500)
  order = np.concatenate([next(it)["ids"][:, 1] for _ in range(10)])
  assert sorted(order) == list(range(5000))
  assert (order[:-1] + 1 == order[1:]).mean() < 0.01


def test_shuffle_off_keeps_the_order(proc):
  data = mixture.Mixture([sources.Memory(examples(10))])
  it = make(proc, data, shuffle=False)
  assert next(it)["ids"][:, 1].tolist() == [*range(10), *range(6)]


def test_mixture_proportions_in_batches(proc):
  ids = np.concatenate([b["ids"] for b in global_batches(proc, 50)])
  assert abs((ids[:, 0] == 0).mean() - 0.7) < 0.01


# --- state ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("k", [0, 1, 4])
@pytest.mark.parametrize("threads", [0, 3])
def test_restore_equals_the_straight_run(proc, straight, k, threads):
  it = make(proc, threads=threads)
  for _ in range(k):
    next(it)
  state = json.loads(json.dumps(it.state()))
  for _ in range(2):  # What was read ahead, and consumed after the state was taken, is not in it.
    next(it)
  again = make(proc, threads=2 - threads if threads < 2 else 0)
  again.restore(state)
  assert [digest(next(again)) for _ in range(STEPS - k)] == straight[k:]
  it.restore(state)
  assert digest(next(it)) == straight[k]
  assert state["step"] == k
  got = global_batches(proc, STEPS - k, hosts=4, state=state)
  assert [digest(b) for b in got] == straight[k:]


def test_counters_survive_a_restore(proc):
  it = make(proc)
  for _ in range(10):
    next(it)
  assert it.counters["bad"]["a"] > 2
  again = make(proc)
  again.restore(it.state())
  assert again.counters == it.counters
  next(it), next(again)
  assert again.counters == it.counters and again.state() == it.state()


def test_far_steps_are_reached_at_once(proc):
  make(proc).__next__()
  begin = time.monotonic()
  it = make(proc)
  it.restore({"step": 10**7})
  far = next(it)
  assert time.monotonic() - begin < 1  # A replay of 10^7 steps would take days.
  assert it.state()["step"] == 10**7 + 1
  again = make(proc)
  again.restore({"step": 10**7 - 1})
  next(again)
  assert digest(next(again)) == digest(far)


@pytest.mark.parametrize("state", [{}, {"step": -1}, {"step": "4"}, None, {"next_index": 3}])
def test_states_that_are_none(proc, state):
  with pytest.raises(ValueError, match="not a state of a loader"):
    make(proc).restore(state)


# --- bad records ----------------------------------------------------------------------------------


def test_bad_records_keep_their_row_with_weight_0(proc, capfd):
  bad = 0
  for batch in global_batches(proc, STEPS):
    broken = (batch["ids"][:, 0] == 0) & np.isin(batch["ids"][:, 1], (3, 30))
    np.testing.assert_array_equal(batch["bad"], broken)
    np.testing.assert_array_equal(batch["weights"].any(1), ~broken)
    bad += broken.sum()
  err = capfd.readouterr().err.splitlines()
  assert bad and len(err) == bad
  assert all("weight 0: a[3" in line and "not an image" in line for line in err)


def test_policy_raise_stops_at_the_first(proc):
  for threads in (0, 3):
    it = make(proc, bad_records=dict(policy="raise"), threads=threads)
    with pytest.raises(BadExample, match=r"a\[30?\]: not an image.*\(source 'a'\)"):
      for _ in range(20):
        next(it)


def test_too_many_bad_records_stop_the_run(proc):
  data = mixture.Mixture([sources.Memory(examples(50, bad=range(0, 50, 10)), "c")])
  it = make(proc, data, bad_records=dict(policy="skip", max_rate=0.05, window=100))
  with pytest.raises(
    loader.TooManyBad, match=r"6 bad .* last 100 rows .*max_rate=0.05.*'c': 6.*: c\["
  ):
    for _ in range(20):
      next(it)
  it = make(proc, data, bad_records=dict(policy="skip", max_rate=0.15, window=100))
  for _ in range(60):
    next(it)
  assert it.counters["bad"]["c"] >= 90


def test_the_window_survives_a_restore(proc):
  """A run that is killed often must still notice that its records are bad."""
  data = mixture.Mixture([sources.Memory(examples(50, bad=range(0, 50, 10)), "c")])
  options = dict(bad_records=dict(policy="skip", max_rate=0.05, window=100))
  state = {"step": 0}
  with pytest.raises(loader.TooManyBad):
    for _ in range(20):
      it = make(proc, data, **options)
      it.restore(state)
      next(it)
      state = json.loads(json.dumps(it.state()))


def test_cut_texts_are_counted(proc):
  rows = examples(4)
  rows[2]["suffix"] = "0123456789" * 3
  it = make(proc, mixture.Mixture([sources.Memory(rows, "d")]))
  next(it)
  assert it.counters == {"bad": {"d": 0}, "cut": {"d": 4}}


def test_bad_json_lines_in_training_name_file_and_line(proc, tmp_path, capfd):
  rng = np.random.default_rng(0)
  from PIL import Image

  Image.fromarray(rng.integers(0, 256, (9, 9, 3), dtype=np.uint8)).save(tmp_path / "a.png")
  good = json.dumps(dict(image="a.png", prefix="what", suffix="1"))
  lines = [good, '{"image": "a.png", "prefix": "what"}', good, good.replace("a.png", "b.png")]
  (tmp_path / "x.jsonl").write_text("\n".join(lines))
  it = make(proc, dict(sources=(dict(kind="jsonl", path=str(tmp_path / "x.jsonl")),)))
  batch = next(it)
  assert batch["bad"].sum() == 8 and it.counters["bad"] == {"x.jsonl": 8}
  err = capfd.readouterr().err
  assert "x.jsonl:2: has no field 'suffix'" in err and "x.jsonl:4: image '" in err


def test_mistakes_of_code_are_not_bad_records(proc):
  data = mixture.Mixture(
    [sources.Memory(examples(4), "e")], chains=[lambda example, rng: example["no_such_field"]]
  )
  with pytest.raises(KeyError, match="no_such_field") as e:
    next(make(proc, data))
  assert any("of source 'e'" in note for note in e.value.__notes__)


@pytest.mark.parametrize(
  "over,text",
  [
    (dict(batch_size=10, process_count=4), "batch_size=10 is not a multiple of the 4 processes"),
    (dict(process_index=2, process_count=2), "process 2 of 2 does not exist"),
    (dict(threads=-1), "loader.threads=-1"),
    (dict(bad_records=dict(policy="ignore")), "unknown bad_records.policy 'ignore'"),
    (dict(bad_records=dict(max_rat=1)), "field of bad_records 'max_rat'; did you mean 'max_rate'"),
  ],
)
def test_config_errors(proc, over, text):
  with pytest.raises(ValueError, match=text):
    make(proc, **over)


def test_importing_the_loader_is_light(root):
  import subprocess
  import sys

  code = (
    "import sys; import bigvlm.data.loader, bigvlm.data.sources, bigvlm.processing.processor; "
    "heavy = {'jax', 'grain', 'tensorflow_datasets', 'sentencepiece', 'cv2'} & set(sys.modules); "
    "sys.exit(str(heavy) if heavy else 0)"
  )
  found = subprocess.run(
    [sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=False
  )
  assert found.returncode == 0, found.stderr
