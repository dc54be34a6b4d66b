"""Sources: what they read, and what they say about records that cannot be used."""

import importlib
import json
import pickle
import subprocess
import sys
import types

import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from bigvlm.data import jsonl, records, sources
from bigvlm.processing import image as images
from bigvlm.processing.image import BadExample


def write(path, lines) -> str:
  text = "".join(line if isinstance(line, str) else json.dumps(line) + "\n" for line in lines)
  path.write_bytes(text.encode())
  return str(path)


def record(i, **more):
  return dict(image=f"{i}.png", prefix=f"p{i} é", suffix=f"s{i}", **more)


# --- the table ------------------------------------------------------------------------------------


def test_memory():
  source = sources.make(dict(kind="memory", examples=[dict(a=1), dict(a=2, id="x")], name="m"))
  assert (len(source), source.name) == (2, "m")
  assert source[0] == dict(id="m[0]", a=1) and source[1] == dict(id="x", a=2)
  assert sources.make(source) is source


def test_config_containers_are_taken():
  cfg = ConfigDict(dict(kind="memory", examples=[dict(a=(1, 2))], weight=2.0, name=""))
  source = sources.make(cfg)
  assert source.name == "memory" and type(source[0]) is dict


def test_code_from_outside():
  module = types.ModuleType("somebodys_data")
  module.Numbers = lambda n, name="numbers": sources.Memory([dict(n=i) for i in range(n)], name)
  sys.modules["somebodys_data"] = module
  assert len(sources.make(dict(kind="somebodys_data:Numbers", n=3))) == 3
  with pytest.raises(ValueError, match="module 'somebodys_data' has no 'Nombres'"):
    sources.make(dict(kind="somebodys_data:Nombres"))
  with pytest.raises(ValueError, match="No module named 'nobodys_data'"):
    sources.make(dict(kind="nobodys_data:X"))


def test_digits_is_in_the_table():
  source = sources.make(dict(kind="digits", length=5))
  assert len(source) == 5 and source[0]["image"].dtype == np.uint8


@pytest.mark.parametrize(
  "cfg,text",
  [
    (dict(kind="jsonlines", path="a"), "unknown source 'jsonlines'; did you mean 'jsonl'"),
    (dict(kind="memory", exemples=[]), "argument of source 'memory' 'exemples'; did you mean"),
    (dict(kind="memory"), "source 'memory' needs the argument 'examples'"),
    (dict(name="a"), "'kind' is missing"),
    (dict(kind="jsonl", path="workdir:a.jsonl"), "needs a working directory"),
    (dict(kind="jsonl", path="nowhere.jsonl"), "nowhere.jsonl.*No such file"),
  ],
)
def test_config_errors(cfg, text):
  with pytest.raises(ValueError, match=text):
    sources.make(cfg)


def test_ops_of_a_single_source_give_the_same_draw_every_time():
  image = np.arange(20 * 20 * 3, dtype=np.uint8).reshape(20, 20, 3)
  cfg = dict(kind="memory", examples=[dict(image=image)] * 9)
  source = sources.make(cfg | dict(ops=(dict(op="random_crop", size=15),)))
  first = [source[i]["image"] for i in range(9)]
  for i in reversed(range(9)):
    np.testing.assert_array_equal(source[i]["image"], first[i])
  assert len({x.tobytes() for x in first}) > 3


@pytest.mark.parametrize("size,count", [(10, 1), (10, 3), (10, 4), (3, 8)])
def test_eval_slices_have_each_example_once(size, count):
  source = sources.Memory([dict(n=i) for i in range(size)])
  slices = [sources.eval_slice(source, p, count) for p in range(count)]
  seen = [i for s in slices for i, example in s if example["n"] == i]
  assert sorted(seen) == list(range(size))
  assert [len(s) for s in slices] == [len(list(s)) for s in slices]
  assert max(map(len, slices)) - min(map(len, slices)) <= 1
  with pytest.raises(ValueError, match="process 3 of 3"):
    sources.eval_slice(source, 3, 3)


# --- JSON Lines -----------------------------------------------------------------------------------


def test_jsonl(tmp_path):
  Image.fromarray(np.full((4, 5, 3), 7, np.uint8)).save(tmp_path / "0.png")
  lines = [record(0, extra=[1]), "\n", record(1), "\r\n", json.dumps(record(2))]
  path = write(tmp_path / "a.jsonl", lines)
  source = sources.make(dict(kind="jsonl", path=path))
  assert (len(source), source.name) == (3, "a.jsonl")
  assert [source[i]["suffix"] for i in (2, 0, 1)] == ["s2", "s0", "s1"]
  assert [source[i]["id"] for i in range(3)] == [f"{path}:{n}" for n in (1, 3, 5)]
  assert source[0]["prefix"] == "p0 é" and source[0]["extra"] == [1]
  assert (images.decode(source[0]["image"]) == 7).all()
  again = pickle.loads(pickle.dumps(source))
  assert again[1] == source[1]


def test_jsonl_chunks_of_the_index(tmp_path, monkeypatch):
  lines = [record(i, pad="é" * (i % 7)) for i in range(50)]
  path = write(tmp_path / "a.jsonl", lines)
  monkeypatch.setattr(jsonl, "_CHUNK", 13)
  source = jsonl.Jsonl(path)
  assert [source[i]["suffix"] for i in range(50)] == [f"s{i}" for i in range(50)]


def test_jsonl_fields_and_constants(tmp_path):
  path = write(tmp_path / "a.jsonl", [dict(file="x.jpg", caption="a dog")])
  source = jsonl.Jsonl(
    path,
    images="/pictures",
    fields=dict(image="file", suffix="caption"),
    constant=dict(prefix="caption en"),
  )
  assert source[0] == dict(
    image="/pictures/x.jpg", suffix="a dog", prefix="caption en", id=f"{path}:1"
  )


def test_jsonl_with_several_pictures(tmp_path):
  lines = [
    dict(record(0), image=["l.png", "/r.png"], mask="m.png"),
    dict(record(1), image=["l.png", 4]),
  ]
  source = jsonl.Jsonl(write(tmp_path / "a.jsonl", lines), images="/pictures")
  assert source[0]["image"] == ["/pictures/l.png", "/r.png"]
  assert source[0]["mask"] == "/pictures/m.png"
  with pytest.raises(BadExample, match="a.jsonl:2: field 'image' is not a path, nor a list"):
    source[1]


@pytest.mark.parametrize(
  "line,text",
  [
    ('{"image": "a.png", "prefix": "p"}\n', r"a.jsonl:3: has no field 'suffix'; it has image, pre"),
    ('{"image": "a.png", \n', "a.jsonl:3: is not JSON .*column"),
    ("[1, 2]\n", "a.jsonl:3: is a JSON list, not an object"),
    ('{"image": 4, "prefix": "p", "suffix": "s"}\n', "a.jsonl:3: field 'image' is not a path"),
    ("[" * 100_000 + "\n", "a.jsonl:3: is not JSON"),
  ],
)
def test_jsonl_errors_name_file_and_line(tmp_path, line, text):
  path = write(tmp_path / "a.jsonl", [record(0), "\n", line, record(1)])
  source = jsonl.Jsonl(path)
  with pytest.raises(BadExample, match=text):
    source[1]
  assert source[2]["suffix"] == "s1"


def test_jsonl_text_that_is_not_utf8(tmp_path):
  path = tmp_path / "a.jsonl"
  path.write_bytes(json.dumps(record(0)).encode() + b'\n{"image": "\xff\xfe"}\n')
  with pytest.raises(BadExample, match="a.jsonl:2: is not UTF-8"):
    jsonl.Jsonl(str(path))[1]


def test_jsonl_that_can_never_work_is_refused_at_once(tmp_path):
  path = write(tmp_path / "a.jsonl", [dict(image="a", question="q", suffix="s")] * 30)
  with pytest.raises(ValueError, match="a.jsonl:1: has no field 'prefix'"):
    jsonl.Jsonl(path)
  with pytest.raises(ValueError, match="b.jsonl' has no records"):
    jsonl.Jsonl(write(tmp_path / "b.jsonl", ["\n"]))


def test_missing_image_file_names_the_line(tmp_path):
  path = write(tmp_path / "a.jsonl", [record(0)])
  example = jsonl.Jsonl(path)[0]
  with pytest.raises(BadExample, match=r"a.jsonl:1: image '.*0.png': No such file"):
    images.decode(example["image"], record=example["id"])


# --- TFDS and ArrayRecord -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def builder(root):
  """The module of the test builder; registers the dataset tiny_scenes."""
  folder = str(root / "tests" / "data")
  sys.path.insert(0, folder)
  yield importlib.import_module("tiny_scenes.builder")
  sys.path.remove(folder)


@pytest.fixture(scope="module")
def tfds_dir(builder, tmp_path_factory):
  folder = tmp_path_factory.mktemp("tfds")
  built = builder.TinyScenes(data_dir=str(folder), file_format="array_record")
  built.download_and_prepare()
  return folder


FIELDS = dict(image="image", prefix="question", suffix="answers")


@pytest.mark.parametrize("by", ["name", "directory"])
def test_tfds(builder, tfds_dir, by):
  where = dict(dataset="tiny_scenes", data_dir=str(tfds_dir))
  if by == "directory":
    where = dict(directory=str(tfds_dir / "tiny_scenes" / "1.0.0"))
  source = sources.make(dict(kind="tfds", split="train", fields=FIELDS, name="tiny", **where))
  assert len(source) == 24
  again = pickle.loads(pickle.dumps(source))
  seen = set()
  for i in range(24):
    example = again[i]
    n = int(example["number"])
    seen.add(n)
    assert isinstance(example["image"], bytes)
    np.testing.assert_array_equal(images.decode(example["image"]), builder.picture(n))
    assert example["prefix"] == f"wie viel? é{n}"
    assert list(example["suffix"]) == [f"{n}", f"no. {n}"]
    assert example["id"] == f"tiny/train[{i}]"
  assert seen == set(range(24))
  part = sources.make(dict(kind="tfds", split="validation[:3]", **where))
  assert len(part) == 3


def test_tfds_errors(builder, tfds_dir):
  with pytest.raises(ValueError, match=r"source 'no_such_set' \(tfds"):
    sources.make(dict(kind="tfds", dataset="no_such_set", data_dir=str(tfds_dir)))
  with pytest.raises(ValueError, match="tiny_scenes.*split 'tset'"):
    sources.make(dict(kind="tfds", dataset="tiny_scenes", data_dir=str(tfds_dir), split="tset"))
  with pytest.raises(ValueError, match="either `dataset` or `directory`"):
    sources.make(dict(kind="tfds"))
  source = records.Tfds(
    "tiny_scenes", data_dir=str(tfds_dir), fields=dict(image="image", suffix="label")
  )
  with pytest.raises(BadExample, match=r"tiny_scenes/train\[3\]: has no field 'label'; it has"):
    source[3]


def test_tfds_never_imports_tensorflow(root, builder, tfds_dir, tmp_path):
  """Also where TensorFlow is installed: importing it ends the process here."""
  (tmp_path / "tensorflow").mkdir()
  (tmp_path / "tensorflow" / "__init__.py").write_text("import os; os._exit(17)\n")
  code = f"""
import sys
sys.path[:0] = [{str(tmp_path)!r}]
from bigvlm.data import sources
source = sources.make(dict(kind="tfds", directory={str(tfds_dir / "tiny_scenes/1.0.0")!r}))
assert source[0]["image"][:4] == b"\\x89PNG"
"""
  found = subprocess.run(
    [sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=False
  )
  assert found.returncode == 0, found.stderr


def test_array_record(tmp_path):
  examples = [
    dict(image=b"\x89\xff", prefix=f"é{i}", n=i, score=i / 2, many=[1, 2], words=["a", "b"])
    for i in range(11)
  ]
  for shard in range(2):
    path = tmp_path / f"a-{shard}.array_record"
    records.write_array_record(path, examples[shard * 6 : shard * 6 + 6])
  source = sources.make(dict(kind="arrayrecord", paths=str(tmp_path / "a-*"), name="ar"))
  assert len(source) == 11
  for i in (10, 0, 6):
    got = pickle.loads(pickle.dumps(source))[i]
    assert (got["image"], got["prefix"], got["n"], got["score"]) == (b"\x89\xff", f"é{i}", i, i / 2)
    assert got["many"].tolist() == [1, 2] and got["words"] == ["a", "b"]
    assert got["id"] == f"ar[{i}]"


def test_array_record_errors(tmp_path):
  with pytest.raises(ValueError, match="source 'arrayrecord': no file matches"):
    records.ArrayRecord(str(tmp_path / "*.ar"))
  from array_record.python import array_record_module

  writer = array_record_module.ArrayRecordWriter(str(tmp_path / "x"), "group_size:1")
  writer.write(b"\xff\xff\xff")
  writer.write(records.serialize_example(dict(image=b"", text=b"\xff")))
  writer.close()
  source = records.ArrayRecord(str(tmp_path / "x"), name="x")
  with pytest.raises(BadExample, match=r"x\[0\]: is no tf.train.Example"):
    source[0]
  with pytest.raises(BadExample, match=r"x\[1\]: field 'text' is not UTF-8"):
    source[1]
  with pytest.raises(ValueError, match="field 'a' holds dict"):
    records.serialize_example(dict(a=[{}]))
