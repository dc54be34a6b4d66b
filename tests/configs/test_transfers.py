"""PaliGemma's transfers: what they say, that they build at their sizes, and that they run."""

import json
import pathlib

import jax
import numpy as np
import pytest
from PIL import Image

from bigvlm import build, config, testing, zoo
from bigvlm.configs.transfers import paligemma
from bigvlm.evaluators import table
from bigvlm.hub import load as hub_load
from bigvlm.hub import table as hub_table
from bigvlm.processing import tokenizer
from bigvlm.trainers import saved, stages, starting, train
from bigvlm.types import to_batch
from bigvlm.utils import tree

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
# Published counts, with the rows for padding that the hub's tables have.
COUNTS = {
  ("3b", 224): 2_923_466_480,
  ("3b", 448): 2_924_351_216,
  ("3b", 896): 2_927_890_160,
  ("2-3b", 224): 3_032_242_416,
  ("2-3b", 448): 3_033_127_152,
  ("2-3b", 896): 3_036_666_096,
  ("2-10b", 224): 9_662_638_832,
  ("2-28b", 224): 27_650_487_024,
}
RECORD = dict(
  question="what is it ?",
  sentence="the left one",
  choices=["a cat", "a dog", "a cow"],
  label=1,
  hint="it barks",
  language="en",
  box=[0.1, 0.2, 0.8, 0.9],
  mask="mask.png",
)
SUFFIXES = {"refcoco_seg": "<loc0001><loc0002><loc0500><loc0600>" + "<seg007>" * 16}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
  """A folder with records for every task, and a tokeniser."""
  root = tmp_path_factory.mktemp("transfers")
  texts = [*(v for v in RECORD.values() if isinstance(v, str)), "answer en ", "The answer is B."]
  tokenizer.train([*texts, "yes", "caption en\n", "0123456789"] * 4, root / "tok.model", 384)
  rng = np.random.default_rng(0)
  for name, row in paligemma.TASKS.items():
    folder = root / name
    folder.mkdir()
    for i in range(3):
      Image.fromarray(rng.integers(0, 256, (20, 24, 3), np.uint8)).save(folder / f"{i}.png")
    Image.fromarray(np.full((20, 24), 255, np.uint8)).save(folder / "mask.png")
    lines = []
    for i in range(4):
      paths = [f"{k % 3}.png" for k in range(1 if i == 3 else min(row["images"], 3))]
      record = dict(RECORD, image=paths if row["images"] > 1 else paths[0])
      record["suffix"] = SUFFIXES.get(name, ["Yes", "yes"] if i else "No")
      lines.append(json.dumps(record if row["prefix"] else dict(record, prefix="caption en")))
    for file in {*(file for file, _ in row["train"]), *row["val"]}:
      (folder / f"{file}.jsonl").write_text("\n".join(lines) + "\n")
  return root


def load(root, name, **args):
  words = ",".join(f"{k}={v}" for k, v in dict(task=name, data=root, **args).items())
  return config.load(f"transfers/paligemma:{words},tokenizer={root}/tok.model")


def built(root, c, devices):
  [stage] = stages.resolve(c, root)
  return stages.build(c, stage, root, devices)


def sizes(params):
  return sum(int(np.prod(x.shape)) for x in jax.tree.leaves(params))


@pytest.mark.parametrize("name", list(paligemma.TASKS))
def test_every_task_builds_at_its_sizes(root, devices, name):
  """Published counts; what is frozen has neither optimiser state nor decay."""
  row = paligemma.TASKS[name]
  for res in row["res"]:
    b = built(root, load(root, name, res=res), devices[:4])
    assert sizes(b.params) == COUNTS[row["size"], res]
    trained, frozen = tree.names(b.state.params), tree.names(b.state.frozen)
    assert len(trained) + len(frozen) == len(tree.names(b.params))
    freeze = row["freeze_vit"][res] if isinstance(row["freeze_vit"], dict) else row["freeze_vit"]
    if not row["only"]:
      assert freeze == (not any(n.startswith(("encoders/", "connector/")) for n in trained))
      assert all(n.startswith(("encoders/", "connector/")) for n in frozen)
    moments = sizes(b.state.opt)
    assert moments == (2 * sizes(b.state.params) + 1 if row["optimizer"] == "adam" else 0)
    pixels = b.processor.spec()["image"][0]
    assert pixels == (row["images"], res, res, 3)
    assert b.processor.image_tokens == row["images"] * (res // 14) ** 2
    assert b.processor.text_len == row["text_len"]
    assert b.module.decoder.final_softcap == 0


@pytest.mark.parametrize("size, res", [key for key in COUNTS if key[0] != "3b"])
def test_paligemma_2_builds(root, devices, size, res):
  b = built(root, load(root, "forkme", size=size, res=res), devices[:1])
  assert sizes(b.params) == COUNTS[size, res]
  assert b.module.decoder.attn_softcap == 50 and b.module.decoder.final_softcap == 0


HUB_TEXT = {
  "3b": dict(model_type="gemma", hidden_size=2048, intermediate_size=16_384, num_hidden_layers=18),
  "2-3b": dict(
    model_type="gemma2", hidden_size=2304, intermediate_size=9216, num_hidden_layers=26,
    num_key_value_heads=4,
  ),
}  # fmt: skip


@pytest.mark.parametrize("size", HUB_TEXT)
def test_a_transfer_takes_every_parameter_of_the_published_checkpoint(root, devices, size):
  text = dict(num_attention_heads=8, num_key_value_heads=1, head_dim=256, vocab_size=257_216)
  vision = dict(intermediate_size=4304, hidden_size=1152, num_hidden_layers=27, image_size=448)
  vision |= dict(num_attention_heads=16, patch_size=14, model_type="siglip_vision_model")
  published = dict(
    architectures=["PaliGemmaForConditionalGeneration"],
    text_config=text | HUB_TEXT[size],
    vision_config=vision,
  )
  system = hub_table.system(published, "config.json")
  there = zoo.abstract_params(hub_load.plain_config(system, "float32"))
  b = built(root, load(root, "vqav2", size=size, res=448), devices[:1])
  same, resampled = starting.carry(tree.flatten(b.params), tree.flatten(there), b.stage, b.stage)
  assert len(same) == len(tree.names(b.params)) and not resampled


def test_what_a_task_asks_of_the_trainer():
  c = config.load("transfers/paligemma:task=infovqa,res=896,size=2-3b,data=/my/data")
  [s] = c.stages
  assert (s.epochs, s.batch_size, s.lr, s.grad_clip) == (3, 32, 3e-6, 1.0)
  assert s.weight_decay == ((paligemma.DECAYED, 3e-7),)
  assert s.schedule.kind == "cosine" and s.schedule.warmup == 0.05
  assert (s.optimizer.kind, s.optimizer.b2) == ("adam", 0.999)
  assert (s.objective.normalize, s.objective.label_smoothing) == ("example", 0.4)
  assert s.init.source == "hf:google/paligemma2-3b-pt-896"
  assert c.processor.tokenizer.path == "hf:google/paligemma2-3b-pt-896/tokenizer.model"
  assert s.data.sources[0].path == "/my/data/infovqa/train.jsonl"
  assert [e.data.path for e in s.evals] == ["/my/data/infovqa/val.jsonl"]
  for name, beams in (("cococap", [2, 2]), ("textcaps", [3]), ("vqav2", [0])):
    evals = config.load(f"transfers/paligemma:task={name},tests").stages[0].evals
    assert [table.make(e).cfg["beams"] for e in evals] == beams
  c = config.load("transfers/paligemma:freeze_vit,init=mine.npz,text_len=64,batch_size=8")
  assert c.stages[0].train == ("decoder/.*",) and not c.stages[0].weight_decay
  assert c.stages[0].init.source == "mine.npz" and c.model.decoder.vocab == 257_152
  assert (c.processor.text_len, c.stages[0].batch_size) == (64, 8)
  c = config.load("transfers/paligemma:freeze_llm")
  assert c.stages[0].train == ("encoders/.*", "connector/.*")


@pytest.mark.parametrize(
  "arg, said",
  [
    ("task=vqa2", "unknown task 'vqa2'; did you mean 'vqav2'"),
    ("task=vqav2,res=896", "task 'vqav2' was published at res 224, 448, not 896"),
  ],
)
def test_refused(arg, said):
  with pytest.raises(ValueError, match=said):
    config.load(f"transfers/paligemma:{arg}")


def test_decay_hits_what_big_visions_rule_hits(root, devices):
  """Kernels of image tower and connector; Gemma's have other names there."""
  b = built(root, load(root, "vqav2", res=224), devices[:1])
  hits = tree.match(tree.names(b.params), (paligemma.DECAYED,))
  found = {n for n, hit in zip(tree.names(b.params), hits, strict=True) if hit == 0}
  kernels = {n for n in tree.names(b.params) if n.endswith("/kernel")}
  assert found == {n for n in kernels if not n.startswith("decoder/")}
  assert "connector/linear/kernel" in found and "encoders/image/patch/kernel" in found


@pytest.mark.parametrize(
  "name",
  ["vqav2", "refcoco_seg", "widgetcap", "nlvr2", "msvd_qa", "science_qa", "pope"],
)
def test_two_steps(root, tmp_path, name):
  """One of each kind; those with evaluators also write and look at answers."""
  c = load(root, name, tiny=True)
  scored = name in ("nlvr2",)
  if not scored:
    c.stages[0].evals = ()
  done = train.run(c, tmp_path, summary=scored)["stages"][0]
  assert done["steps"] == 2 and np.isfinite(done["metrics"]["train/loss"])
  if scored:
    assert 0 <= done["metrics"]["val/acc"] <= 1
    assert (tmp_path / "report.md").is_file()
  if name in ("science_qa", "pope"):
    _check_unmoved(c, tmp_path, all_of_it=name == "pope")


def _check_unmoved(c, workdir, all_of_it):
  """What is frozen is bit for bit what it started as; with a learning rate of 0 all is."""
  [stage] = stages.resolve(c, workdir)
  b = stages.build(c, stage, workdir)
  before = starting.state_lib.params_of(starting.tensors(starting.start(c, b)))
  after = saved.read(workdir, stage.name, b.mesh, ("params", "frozen"))
  for name, x in starting.state_lib.params_of(after).items():
    same = np.array_equal(np.asarray(x), np.asarray(before[name]))
    assert same or not (all_of_it or name.startswith(("encoders/", "connector/"))), name
    if not all_of_it and name.startswith("decoder/embedding"):
      assert not same


def test_missing_pictures_change_nothing(root):
  """Three slots of which one is filled give the logits of one slot."""
  tok = tokenizer.SentencePiece(root / "tok.model", extra=False)
  example = dict(image=np.full((16, 16, 3), 90, np.uint8), prefix="what is", suffix="yes")
  out, cfg = (
    [],
    testing.TINY_VLM
    | dict(
      encoders=dict(image=testing.TINY_VIT | dict(depth=1)),
      decoder=testing.TINY_VLM["decoder"] | dict(vocab=512, depth=1),
    ),
  )
  module, params = build.model(cfg), None
  for count in (1, 3):
    size = dict(size=16, count=count)
    path = str(root / "tok.model")
    spec = dict(image=size, text_len=24, tokenizer=dict(path=path, extra=False))
    row = build.processor(cfg, spec)(example, np.random.default_rng(0))
    batch = to_batch({k: v[None] for k, v in row.items()})
    if params is None:
      shapes = jax.eval_shape(module.init, jax.random.key(0), batch)
      zeros = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes)
      params = testing.shaken(zeros, size=0.3)
    logits = np.asarray(jax.jit(module.apply)(params, batch).logits)
    out.append(logits[row["weights"][None] > 0])
  assert len(out[0]) == len(tok.encode("yes")) + 1
  assert out[0].std() > 0.1
  np.testing.assert_allclose(out[1], out[0], rtol=1e-5, atol=1e-5)


def test_the_table_in_the_documentation_is_the_one_that_runs():
  assert paligemma.table() in (ROOT / "docs" / "transfers.md").read_text()
