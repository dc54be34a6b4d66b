"""Sampling filters, log-probabilities, samples from one prefill, streams and beam search."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigvlm import api, beam, build, generate, testing
from bigvlm.parallel import mesh as meshes
from bigvlm.sampling import GREEDY, Sampling, filtered
from bigvlm.types import Batch, MaskSpec, Text

VOCAB, EOS = 7, 1
LM = dict(
  kind="lm",
  decoder=dict(
    kind="decoder", vocab=VOCAB, width=16, depth=2, hidden=32, heads=2, kv_heads=1, head_dim=8
  ),
)


def prompts(rows):
  """A batch of prompts, padded on the left."""
  length = max(map(len, rows))
  tokens = np.zeros((len(rows), length), np.int32)
  mask = np.zeros_like(tokens)
  for row, ids in enumerate(rows):
    tokens[row, length - len(ids) :] = ids
    mask[row, length - len(ids) :] = 1
  order = np.maximum(np.cumsum(mask, 1) - 1, 0).astype(np.int32)
  read = np.full((len(rows), 1), length - 1, np.int32)
  spec = MaskSpec(mask, order, order)
  return Batch(Text(tokens, spec, order, np.full_like(tokens, -1), read), {})


ROWS = [[2, 5, 3, 6], [4, 2], [3, 3, 5]]


@pytest.fixture(scope="module")
def lm():
  module = build.model(LM)
  params = module.init(jax.random.key(0), prompts(ROWS))["params"]
  params = testing.shaken(params, 10, 1.0)  # Whose answers vary, and end or not.
  return module, params, generate.unstack(params)


def decode(lm, rows=ROWS, seed=0, n=5, **kwargs):
  kwargs = dict(max_new_tokens=n, eos=EOS) | kwargs
  return generate.decode(lm[0], lm[2], prompts(rows), jax.random.key(seed), **kwargs)


def full_logits(lm, ids):
  """Logits after each prefix of ids, from one whole forward pass."""
  batch = prompts([ids])
  read = np.arange(len(ids), dtype=np.int32)[None]
  batch = batch.replace(text=batch.text.replace(read=read))
  return np.asarray(_forward(lm[0], lm[1], batch))[0]


@functools.partial(jax.jit, static_argnums=0)
def _forward(module, params, batch):
  return module.apply({"params": params}, batch).logits


def full_logp(lm, ids):
  """log p of every next token after each prefix of ids."""
  return np.asarray(jax.nn.log_softmax(full_logits(lm, ids)))


def numpy_filtered(x, how):
  """The definitions, a row at a time."""
  x = np.array(x, np.float64) / how.temperature
  keep = np.ones(len(x), bool)
  if how.top_k:
    keep &= x >= np.sort(x)[-how.top_k]
  p = np.where(keep, np.exp(x - x.max()), 0)
  p /= p.sum()
  if how.top_p < 1:
    total, left = 0.0, np.zeros_like(keep)
    for at in np.argsort(-p):
      if total >= how.top_p:
        break
      left[at], total = True, total + p[at]
    keep &= left
    p = np.where(keep, p, 0) / p[keep].sum()
  return keep & (p >= how.min_p * p.max())


@pytest.mark.parametrize(
  "how",
  [
    Sampling(temperature=0.7),
    Sampling(temperature=1.0, top_k=3),
    Sampling(temperature=1.3, top_p=0.6),
    Sampling(temperature=0.9, min_p=0.2),
    Sampling(temperature=0.8, top_k=5, top_p=0.9, min_p=0.05),
  ],
  ids=str,
)
def test_filters_leave_what_their_definitions_leave(how):
  logits = np.random.default_rng(0).standard_normal((20, 11)).astype(np.float32) * 2
  got = np.asarray(filtered(jnp.asarray(logits), how))
  for row in range(20):
    np.testing.assert_array_equal(np.isfinite(got[row]), numpy_filtered(logits[row], how))
  kept = np.isfinite(got)
  np.testing.assert_allclose(got[kept], (logits / how.temperature)[kept], rtol=1e-6)


@pytest.mark.parametrize("field", ["temperature=-1", "top_p=0", "min_p=1", "repetition_penalty=0"])
def test_a_value_out_of_range_is_refused(field):
  name, value = field.split("=")
  with pytest.raises(ValueError, match=rf"{name}=-?[01](\.0)? is out of range"):
    Sampling(**{name: float(value)})


def kernels(params):
  """Names of all leaves."""
  return {path[-1].key for path, _ in jax.tree_util.tree_leaves_with_path(params)}


def test_small_decoders_in_float32_are_copied_for_few_rows_and_no_others(lm, monkeypatch):
  module, stacked, params = lm
  assert "turned" in kernels(generate.for_steps(module, params, 2))
  assert "turned" in kernels(generate.for_steps(module, params, 16))
  for same, rows in [(params, 1), (params, 17), (stacked, 2)]:
    assert generate.for_steps(module, same, rows) is same
  half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
  assert generate.for_steps(module, half, 2) is half
  assert generate.for_steps(module, half, 1) is half
  mixed = build.model(LM, dtype=dict(params="float32", compute="bfloat16", logits="float32"))
  assert generate.for_steps(mixed, params, 2) is params
  size = sum(x.nbytes for x in jax.tree.leaves(params["decoder"]))
  monkeypatch.setattr(generate, "_TURNED", size - 1)
  assert generate.for_steps(module, params, 2) is params
  monkeypatch.setattr(generate, "_TURNED", size)
  assert "turned" in kernels(generate.for_steps(module, params, 2))


def test_one_row_in_bfloat16_reads_turned_kernels_and_makes_the_same_tokens(lm, monkeypatch):
  _, _, params = lm
  module = build.model(LM, dtype=dict(params="bfloat16", compute="bfloat16", logits="float32"))
  half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
  turned = generate.for_steps(module, half, 1)
  assert "turned" in kernels(turned) and "kernel" not in kernels(turned["decoder"])
  assert generate.for_steps(module, half, 2) is half
  apart = half | {"decoder": half["decoder"] | {"head": jnp.zeros((1, 1), jnp.bfloat16)}}
  assert generate.for_steps(module, apart, 1) is apart
  got = decode((module, None, half), [ROWS[0]], n=8)
  monkeypatch.setattr(generate, "for_steps", lambda module, params, rows: params)
  jax.clear_caches()
  want = decode((module, None, half), [ROWS[0]], n=8)
  np.testing.assert_array_equal(got.tokens, want.tokens)
  np.testing.assert_allclose(got.logp, want.logp, atol=0.05)


def test_samples_have_the_models_frequencies(lm):
  row = ROWS[0]
  ids = decode(lm, [row], n=1, samples=4000, sampling=Sampling(temperature=1.0)).tokens[:, 0]
  want = np.exp(full_logp(lm, row)[-1])
  got = np.bincount(np.asarray(ids), minlength=VOCAB) / 4000
  assert np.abs(got - want).max() < 4 * 0.5 / 4000**0.5


def test_samples_of_one_prefill_are_those_of_repeated_prompts(lm):
  how = Sampling(temperature=1.0)
  a = decode(lm, sampling=how, samples=3)
  b = decode(lm, [row for row in ROWS for _ in range(3)], sampling=how)
  np.testing.assert_array_equal(a.tokens, b.tokens)
  assert len(np.unique(a.tokens, axis=0)) > 3


def test_a_batch_equals_singles(lm):
  whole = decode(lm)
  for row, ids in enumerate(ROWS):
    np.testing.assert_array_equal(decode(lm, [ids]).tokens[0], whole.tokens[row])


def test_log_probabilities_are_those_of_a_whole_forward_pass(lm):
  out = decode(lm, sampling=Sampling(temperature=1.0), seed=3)
  for row, ids in enumerate(ROWS):
    tokens = np.asarray(out.tokens[row])
    count = int(np.argmax(tokens == EOS)) + 1 if EOS in tokens else len(tokens)
    logp = full_logp(lm, [*ids, *tokens[:count]])
    want = [logp[len(ids) - 1 + n, tokens[n]] for n in range(count)]
    np.testing.assert_allclose(out.logp[row, :count], want, atol=1e-4)
    assert not np.asarray(out.logp[row, count:]).any()


def test_a_penalty_is_on_what_the_row_has(lm):
  got = decode(lm, sampling=Sampling(repetition_penalty=3.0), eos=(), n=4).tokens
  assert not np.array_equal(got, decode(lm, eos=(), n=4).tokens)
  for row, ids in enumerate(ROWS):
    ids = list(ids)
    for token in np.asarray(got[row]).tolist():
      logits = full_logits(lm, ids)[-1].copy()
      for old in set(ids):
        logits[old] *= 1 / 3 if logits[old] > 0 else 3
      assert token == int(np.argmax(logits))
      ids.append(token)


def test_tokens_are_barred_and_forced_where_their_number_says(lm):
  plain = np.asarray(decode(lm, eos=(), n=4).tokens)
  never, late = int(plain[0, 0]), int(plain[1, 1])
  how = Sampling(barred=((0, 4, (never,)), (0, 2, (late,))), forced=((3, (2, 5)),))
  got = np.asarray(decode(lm, sampling=how, eos=(), n=4).tokens)
  for row, ids in enumerate(ROWS):
    ids = list(ids)
    for number, token in enumerate(got[row].tolist()):
      logits = full_logits(lm, ids)[-1].copy()
      logits[[never, late] if number < 2 else [never]] = -np.inf
      if number == 3:
        logits[np.delete(np.arange(VOCAB), [2, 5])] = -np.inf
      assert token == int(np.argmax(logits))
      ids.append(token)


@pytest.mark.parametrize("layers", ["loop", "scan"])
def test_a_stream_grows_to_the_same_tokens_and_stops_when_all_ended(lm, layers):
  args = (build.model(LM, layers=layers), lm[1], prompts(ROWS), jax.random.key(0))
  parts = list(generate.stream(*args, max_new_tokens=5, eos=EOS, every=2))
  whole = np.asarray(decode(lm).tokens)
  for part in parts:
    np.testing.assert_array_equal(part.tokens, whole[:, : part.tokens.shape[1]])
  assert [p.tokens.shape[1] for p in parts][:2] == [1, 3]
  again = list(generate.stream(*args, max_new_tokens=5, eos=EOS, every=2, apart=lm[2]))
  np.testing.assert_array_equal(again[-1].tokens, parts[-1].tokens)
  every = tuple(range(VOCAB))  # Any token ends a row.
  assert len(list(generate.stream(*args, max_new_tokens=5, eos=every, every=2))) == 1


def exhaustive(lm, ids, n, penalty=0.0):
  """(score, tokens) of the best finished answer of at most n tokens, by trying them all."""
  best = (-np.inf, None)
  for count in range(1, n + 1):
    for body in itertools.product([t for t in range(VOCAB) if t != EOS], repeat=count - 1):
      answer = [*body, EOS]
      best = max(best, (score(lm, ids, answer) / count**penalty, answer))
  return best


_scores = {}


def score(lm, ids, answer):
  """log p(answer | ids), every prefix computed once."""
  total = 0.0
  for n, token in enumerate(answer):
    key = (*ids, *answer[:n])
    if key not in _scores:
      _scores[key] = full_logp(lm, list(key))[-1]
    total += _scores[key][token]
  return total


@pytest.mark.parametrize("penalty", [0.0, 1.0])
def test_a_wide_beam_finds_what_trying_all_answers_finds(lm, penalty):
  ids = ROWS[1]
  out = beam.search(
    lm[0],
    lm[2],
    prompts([ids]),
    max_new_tokens=3,
    eos=EOS,
    beams=36,
    pad=0,
    length_penalty=penalty,
  )
  value, answer = exhaustive(lm, ids, 3, penalty)
  assert np.asarray(out.tokens[0]).tolist() == [*answer, 0, 0, 0][:3]
  np.testing.assert_allclose(out.score[0], value, atol=1e-4)


def test_a_beam_is_never_worse_than_greedy_and_rows_do_not_mix(lm):
  out = beam.search(lm[0], lm[2], prompts(ROWS), max_new_tokens=4, eos=EOS, beams=3, pad=0)
  for row, ids in enumerate(ROWS):
    one = beam.search(lm[0], lm[2], prompts([ids]), max_new_tokens=4, eos=EOS, beams=3, pad=0)
    np.testing.assert_array_equal(one.tokens[0], out.tokens[row])
    tokens = np.asarray(out.tokens[row])
    if out.finished[row]:
      answer = tokens[: int(np.argmax(tokens == EOS)) + 1].tolist()
      np.testing.assert_allclose(score(lm, ids, answer), out.score[row], atol=1e-4)


def test_without_an_end_the_best_living_answer_comes_back(lm):
  out = beam.search(lm[0], lm[2], prompts(ROWS), max_new_tokens=3, eos=(), beams=49, pad=0)
  assert not np.asarray(out.finished).any()
  for row, ids in enumerate(ROWS[:1]):
    best = max(
      itertools.product(range(VOCAB), repeat=3), key=lambda a, i=ids: score(lm, i, list(a))
    )
    assert np.asarray(out.tokens[row]).tolist() == list(best)


def test_parameters_cut_apart_are_unrolled_by_a_module_that_scans(lm):
  module = build.model(LM, layers="scan")
  out = generate.decode(
    module, lm[2], prompts(ROWS), jax.random.key(0), max_new_tokens=5, eos=EOS, samples=2
  )
  np.testing.assert_array_equal(out.tokens[::2], decode(lm).tokens)
  assert jax.tree.structure(generate.unstack(lm[2])) == jax.tree.structure(lm[2])


def test_several_samples_of_scanned_layers_are_refused(lm):
  module = build.model(LM, layers="scan")
  with pytest.raises(ValueError, match="unstack"):
    generate.decode(
      module,
      lm[1],
      prompts(ROWS),
      jax.random.key(0),
      max_new_tokens=2,
      eos=EOS,
      samples=2,
      sampling=GREEDY,
    )


def searched(lm, ids, n, beams, penalty):
  """Beam search in plain Python: only what has not ended lives on."""
  live, best = [(0.0, [])], (-np.inf, None)
  for count in range(1, n + 1):
    grown = [
      (total + score(lm, [*ids, *a], [t]), [*a, t]) for total, a in live for t in range(VOCAB)
    ]
    for total, answer in grown:
      if answer[-1] == EOS and total / count**penalty > best[0]:
        best = (total / count**penalty, answer)
    live = sorted((g for g in grown if g[1][-1] != EOS), reverse=True)[:beams]
  return best


@pytest.mark.parametrize("beams", [1, 2])
def test_an_answer_that_has_ended_takes_no_place_among_the_living(lm, beams):
  how = dict(max_new_tokens=4, eos=EOS, beams=beams, pad=0, length_penalty=2.0)
  out = beam.search(lm[0], lm[2], prompts(ROWS), **how)
  for row, ids in enumerate(ROWS):
    value, answer = searched(lm, ids, 4, beams, 2.0)
    assert np.asarray(out.tokens[row]).tolist() == [*answer, 0, 0, 0][:4]
    np.testing.assert_allclose(out.score[row], value, atol=1e-4)


class Rows:
  """A processor whose prompts are those of `ROWS`, and whose words are ids."""

  class tokenizer:  # noqa: N801
    eos = EOS

  def prompt(self, example):
    text = jax.tree.map(lambda x: x[int(example["prefix"] or 0)], prompts(ROWS).text)
    mask = text.mask
    spec = dict(segment=mask.segment, block=mask.block, order=mask.order)
    names = ("tokens", "positions", "media_index", "read")
    return spec | {name: getattr(text, name) for name in names}

  def decode(self, ids):
    return " ".join(map(str, ids))


def test_people_and_evaluators_ask_for_beams(lm):
  config = dict(model=LM, dtype=dict(params="float32", compute="float32", logits="float32"))
  mesh = meshes.make(dict(data=1, fsdp=1, tensor=1), jax.devices()[:1])
  model = api.Model(config, lm[0], lm[1], Rows(), mesh)
  how = dict(max_new_tokens=4, beams=3, length_penalty=2.0)
  found = model.generate([None] * 3, ["0", "1", "2"], **how)
  want = beam.search(lm[0], lm[2], prompts(ROWS), eos=EOS, pad=None, **how).tokens
  assert found == [" ".join(map(str, row)) for row in np.asarray(want)]
  assert found != model.generate([None] * 3, ["0", "1", "2"], max_new_tokens=4)
  with pytest.raises(ValueError, match="beams do not sample"):
    model.generate([None], ["0"], beams=2, temperature=1.0)
