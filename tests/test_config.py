"""What a config may say, and what happens when it says something else."""

import textwrap

import pytest
from ml_collections import ConfigDict

from bigvlm import config
from bigvlm.configs import common
from bigvlm.utils import names, tree

FILE = textwrap.dedent("""\
  from bigvlm import config
  from bigvlm.configs import common

  def get_config(arg=None):
    a = config.parse_arg(arg, res=32, variant="b", rate=0.5)
    evals = (dict(name="vqa", kind="generation", every=0),)
    source = dict(kind="digits", weight=1.0, limit=None)
    return common.base(
      name="toy",
      model=dict(kind="vlm", decoder=dict(kind="decoder", width=64)),
      stages=(
        common.stage(name="low", lr=1, steps=a.res, evals=evals, data=dict(sources=[source])),
        common.stage(name="transfer", steps=7, evals=evals, train=("head/.*",)),
      ),
    )
""")


@pytest.fixture
def path(tmp_path):
  (tmp_path / "toy.py").write_text(FILE)
  return str(tmp_path / "toy.py")


def test_parse_arg_types_values_by_their_defaults():
  a = config.parse_arg("res=448,tiny,variant=B/16,rate=1e-3", res=224, variant="b", rate=0.1)
  assert (a.res, a.tiny, a.variant, a.rate) == (448, True, "B/16", 1e-3)
  assert config.parse_arg(None, res=224).to_dict() == {"res": 224, "tiny": False}
  assert config.parse_arg("tiny=false,flag", flag=False).to_dict() == {"tiny": False, "flag": True}


@pytest.mark.parametrize(
  "arg, said",
  [
    ("rse=3", "did you mean 'res'"),
    ("res=abc", "'res' wants an int, got 'abc'"),
    ("res", "'res' wants a value"),
    ("tiny=perhaps", "wants true or false"),
  ],
)
def test_parse_arg_refuses(arg, said):
  with pytest.raises(ValueError, match=said):
    config.parse_arg(arg, res=224)


def test_load_by_path_normalises(path):
  c = config.load(path + ":res=64")
  assert c.stages[0].steps == 64
  assert c.stages[0].lr == 1.0 and isinstance(c.stages[0].lr, float)
  assert isinstance(c.stages[0].data.sources, tuple)
  assert c.stages[0].data.sources[0].kind == "digits"


def test_stages_share_nothing(path):
  """Both stages were given one tuple of evaluators; changing one must not change the other."""
  c = config.load(path)
  c.stages[0].evals[0].every = 5
  assert c.stages[1].evals[0].every == 0


def test_load_refuses(path, tmp_path):
  with pytest.raises(FileNotFoundError, match="no config file"):
    config.load(str(tmp_path / "nothing.py"))
  with pytest.raises(ValueError, match="unknown config 'no/such'"):
    config.load("no/such")
  (tmp_path / "empty.py").write_text("x = 1\n")
  with pytest.raises(ValueError, match="no function get_config"):
    config.load(str(tmp_path / "empty.py"))


def broken(**fields):
  c = common.base(stages=(common.stage(name="a"), common.stage(name="b")))
  for dotted, value in fields.items():
    *parents, last = dotted.split("__")
    node = c
    for parent in parents:
      node = node[int(parent)] if parent.isdigit() else node[parent]
    with node.ignore_type():
      node[last] = value
  return c


@pytest.mark.parametrize(
  "fields, said",
  [
    (dict(sead=1), r"config: unknown field 'sead'; did you mean 'seed'"),
    (dict(log__evry=1), r"config\.log: unknown field 'evry'; did you mean 'every'"),
    (dict(stages__1__lrr=1), r"config\.stages\[1\]: unknown field 'lrr'; did you mean 'lr'"),
    (dict(stages__1__schedule__wormup=1), r"stages\[1\]\.schedule: .*did you mean 'warmup'"),
    (dict(stages__0__mesh__fspd=2), r"stages\[0\]\.mesh: .*did you mean 'fsdp'"),
    (dict(stages__0__lr="1e-3"), r"stages\[0\]\.lr wants a float, got a string: '1e-3'"),
    (dict(seed=True), r"config\.seed wants an int, got true or false: True"),
    (dict(stages__0__steps=1.5), r"stages\[0\]\.steps wants an int, got a float"),
    (dict(stages__0__train=".*"), r"stages\[0\]\.train wants a tuple, got a string"),
    (dict(stages__0__train=(1,)), r"stages\[0\]\.train wants strings, got an int"),
    (dict(stages__1__name="a"), r"'a' is the name of stages\[0\] already"),
    (dict(stages__1__name=""), r"stages\[1\]\.name"),
    (dict(stages__1__name="a/b"), r"stages\[1\]\.name"),
    (dict(stages__0__data__sources=({"weight": 1},)), r"data\.sources\[0\] needs a field 'kind'"),
    (dict(stages__0__evals=({"kind": "x"},)), r"evals\[0\] needs a field 'name'"),
    (dict(stages=(1,)), r"config\.stages\[0\] is an int, not a stage"),
  ],
)
def test_check_refuses(fields, said):
  with pytest.raises(ValueError, match=said):
    config.check(broken(**fields))


def test_check_makes_floats_of_ints():
  """So that `--config.stages[0].lr=1e-3` is no change of type after `lr=1` in a file."""
  text = config.to_json(broken(stages__0__lr=0.5)).replace('"lr": 0.5', '"lr": 1')
  assert type(config.from_json(text).stages[0].lr) is int
  lr = config.check(config.from_json(text)).stages[0].lr
  assert lr == 1.0 and type(lr) is float


def test_check_wants_every_field():
  c = common.base()
  del c.loader
  with pytest.raises(ValueError, match="config lacks the field 'loader'"):
    config.check(c)


def test_what_an_earlier_version_wrote_gets_the_fields_that_came_later():
  c = common.base(stages=(common.stage(name="one", steps=3, lr=0.5),), seed=7)
  old = config.from_json(config.to_json(c))
  del old.loader, old.log.profile_at, old.stages[0].pack, old.stages[0].init.parts
  assert config.complete(old) == config.from_json(config.to_json(c))


def test_merge_goes_into_dicts_and_leaves_its_arguments_alone():
  base = ConfigDict({"kind": "vlm", "image": {"size": 32, "ops": (1, 2), "x": 1}, "text": None})
  over = ConfigDict({"image": {"size": 64, "ops": (3,)}, "text": {"kind": "t"}})
  merged = config.merge(base, over)
  assert merged.to_dict() == {
    "kind": "vlm",
    "image": {"size": 64, "ops": (3,), "x": 1},
    "text": {"kind": "t"},
  }
  merged.image.size = 1
  assert base.image.size == 32 and over.image.size == 64


def test_json_round_trip(path):
  c = config.load(path)
  again = config.from_json(config.to_json(c))
  assert again == c
  assert again.stages[0].evals[0].name == "vqa" and isinstance(again.stages, tuple)
  assert config.to_json(again) == config.to_json(c)
  c.model.decoder.dropout = float("nan")
  with pytest.raises(ValueError):
    config.to_json(c)


def test_plain_gives_dicts_all_the_way_down(path):
  source = config.plain(config.load(path).stages[0].data)["sources"][0]
  assert type(source) is dict and source == {"kind": "digits", "weight": 1.0, "limit": None}


def parse(path, *argv):
  return config.parse_argv([path, *argv])


@pytest.mark.parametrize(
  "flag, read, value",
  [
    ("--config.stages[1].lr=2", lambda c: c.stages[1].lr, 2.0),
    ("--config.stages[-1].lr=1e-4", lambda c: c.stages[1].lr, 1e-4),
    ("--config.stages.transfer.lr=1e-4", lambda c: c.stages[1].lr, 1e-4),
    ("--config.stages.low.evals.vqa.every=9", lambda c: c.stages[0].evals[0].every, 9),
    ("--config.stages.low.train=head/.*", lambda c: c.stages[0].train, ("head/.*",)),
    ("--config.stages.low.train=('a', 'b')", lambda c: c.stages[0].train, ("a", "b")),
    ("--config.stages.low.data.sources[0].limit=5", lambda c: c.stages[0].data.sources[0].limit, 5),
    ("--config.model.decoder.width=128", lambda c: c.model.decoder.width, 128),
    ("--config.log.tensorboard=false", lambda c: c.log.tensorboard, False),
    ("--noconfig.log.tensorboard", lambda c: c.log.tensorboard, False),
    ("--config.name=x=y", lambda c: c.name, "x=y"),
  ],
)
def test_overrides(path, flag, read, value):
  got = read(parse(path, flag)[0])
  assert got == value and type(got) is type(value)


@pytest.mark.parametrize(
  "flag, said",
  [
    ("--config.sead=1", "did you mean 'seed'"),
    ("--config.stages[0].lrr=1", r"config\.stages\[0\]: unknown field 'lrr'; did you mean 'lr'"),
    ("--config.stages.tansfer.lr=1", "unknown stage 'tansfer'; did you mean 'transfer'"),
    ("--config.stages[2].lr=1", r"no index 2; there is \[0\] low, \[1\] transfer"),
    ("--config.stages[0].lr=fast", r"config\.stages\[0\]\.lr wants a float, got 'fast'"),
    ("--config.stages.low.steps=1.5", r"config\.stages\[0\]\.steps wants an int, got '1\.5'"),
    ("--config.seed=True", r"config\.seed wants an int, got 'True'"),
    ("--config.log.tensorboard=7", "wants true or false"),
    ("--config.stages.low.train=(1,)", "wants strings"),
    ("--config.stages.low.train=('a',", "wants a tuple"),
    ("--config.stages.low.train[0]=a", "set as a whole"),
    ("--config.stages.low.schedule=cosine", "schedule is a dict; set its fields"),
    ("--config.seed.x=1", "config.seed is an int and has no field 'x'"),
    ("--wokrdir=x", "did you mean '--workdir'"),
    ("--stages=7", "no index 7"),
    ("--stages=tansfer", "did you mean 'transfer'"),
    ("--stages=1:1", "selects no stage"),
    ("more", "unexpected argument 'more'"),
  ],
)
def test_overrides_refused_in_one_line(path, flag, said):
  with pytest.raises(ValueError, match=said) as caught:
    parse(path, flag)
  assert "\n" not in str(caught.value)


def test_both_spellings_of_the_command_line(path):
  one = parse(path + ":tiny", "--workdir=w", "--stages=1:")
  two = config.parse_argv(["--workdir", "w", "--config", path + ":tiny", "--stages", "1:"])
  three = config.parse_argv([f"--config={path}:tiny", "--stages=transfer", "--workdir=w"])
  assert one == two == three and one[1:] == ("w", (1,))
  assert parse(path)[1:] == ("workdir/toy", None)
  assert parse(path + ":tiny")[1] == "workdir/toy_tiny"


def test_select_stages():
  pick = lambda spec: config.select_stages(spec, ("a", "b", "c"))  # noqa: E731
  assert pick(None) == pick(":") == (0, 1, 2)
  assert pick("1:") == pick("b:") == pick("1:3") == pick("-2:") == (1, 2)
  assert pick(":2") == pick(":c") == pick("0,1") == pick("b,a") == (0, 1)
  assert pick("2") == pick("c") == pick("-1") == (2,)


def test_every_shipped_config_loads_and_takes_tiny():
  """Whatever configs/ holds is well-formed, and `:tiny` means something to it."""
  for name in config.shipped():
    for spec in (name, f"{name}:tiny"):
      c = config.load(spec)
      assert config.from_json(config.to_json(c)) == c, spec


PARAMS = {"encoders": {"image": {"posemb": 1, "blocks": {"kernel": 2}}}, "t": 3}


def test_names_of_trees():
  flat = tree.flatten(PARAMS)
  assert flat == {"encoders/image/blocks/kernel": 2, "encoders/image/posemb": 1, "t": 3}
  assert tree.unflatten(flat) == PARAMS
  assert tree.map_named(lambda name, x, y: (name, x + y), {"a": {"b": 1}}, {"a": {"b": 2}}) == {
    "a": {"b": ("a/b", 3)}
  }
  with pytest.raises(ValueError, match="leaf"):
    tree.unflatten({"a": 1, "a/b": 2})
  with pytest.raises(ValueError, match="two leaves"):
    tree.flatten({"a": {"b": 1}, "a/b": 2})


def test_patterns_match_whole_names():
  assert tree.mask(PARAMS, ("encoders/.*",)) == {
    "encoders": {"image": {"posemb": True, "blocks": {"kernel": True}}},
    "t": False,
  }
  assert tree.match(tree.names(PARAMS), (".*/posemb", "encoders/.*")) == [1, 0, -1]
  assert tree.mask({"head": 1, "head2": 2}, ("head",)) == {"head": True, "head2": False}


@pytest.mark.parametrize(
  "pattern, said",
  [
    ("encoder/image/.*", r"train: .*matches no parameter; did you mean 'encoders/image"),
    ("encoders/image", "only begins so"),
    ("zzzz.*", "they begin with encoders, t"),
    ("(", "no regular expression"),
  ],
)
def test_patterns_that_match_nothing(pattern, said):
  with pytest.raises(ValueError, match=said):
    tree.mask(PARAMS, (".*", pattern), "train")


def test_a_string_is_no_tuple_of_patterns():
  with pytest.raises(ValueError, match="wants a tuple of patterns"):
    tree.mask(PARAMS, ".*", "train")


def test_unknown_names():
  line = names.unknown("objective", "sigmiod", ["sigmoid", "softmax"])
  assert line == "unknown objective 'sigmiod'; did you mean 'sigmoid'? (options: sigmoid, softmax)"
  assert names.unknown("x", "qqq", ["a"]) == "unknown x 'qqq'; options: a"
  with pytest.raises(ValueError, match="did you mean 'a1'"):
    names.lookup("x", "A1", {"a1": 1})
