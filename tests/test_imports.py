"""Who may import whom, and what no file may contain."""

import ast
import importlib
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
FOLDERS = ("bigvlm", "configs", "trainers", "data", "evaluators")
BESIDE = FOLDERS[1:]
FILES = sorted(p.relative_to(ROOT) for f in FOLDERS for p in (ROOT / f).rglob("*.py"))
EVERYTHING = FILES + sorted(
  p.relative_to(ROOT) for f in ("tests", "benchmarks") for p in (ROOT / f).rglob("*.py")
)

# What of ours each part may import, by prefix; the longest key that fits a module holds.
CORE = ("types", "layers", "models", "objectives", "parallel", "processing", "ckpt", "utils")
TOP = (*CORE, "build", "sampling", "generate", "beam", "api", "config", "data", "evaluators")
ALLOWED = {
  "types": (),
  "schema": ("utils", "configs.common"),
  "config": ("utils", "schema", "configs"),
  "utils": ("utils",),
  "layers": ("types", "layers"),
  "models": ("types", "layers", "models", "processing", "utils"),
  "objectives": ("types", "layers", "objectives", "parallel", "utils"),
  "parallel": ("parallel", "utils"),
  "processing": ("processing", "utils"),
  "ckpt": ("types", "ckpt", "parallel", "utils"),
  "build": (*CORE, "build"),
  "sampling": (),
  "generate": (*CORE, "sampling", "generate"),
  "beam": (*CORE, "generate", "beam"),
  "testing": (*CORE, "build", "config", "testing"),
  "api": (*CORE, "build", "generate", "beam", "api", "config"),
  "lora": ("utils", "hub.peft"),
  "zoo": (*CORE, "build", "config", "configs", "zoo"),
  # The table and the families of checkpoints; `load` also opens workdirs of runs.
  "hub": (*CORE, "build", "sampling", "generate", "beam", "api", "config", "lora", "hub"),
  "hub.load": (*CORE, "build", "api", "config", "zoo", "hub", "trainers.evaluate"),
  "hub.peft": (*CORE, "lora", "hub", "trainers.finetuned"),
  "hub.info": (*CORE, "zoo", "hub"),
  "hub.toys": (*CORE, "build", "zoo", "hub"),
  "diagram": (),
  "systems": ("configs", "diagram", "zoo"),
  "configs": ("config", "configs", "utils"),
  "data": ("processing", "data", "utils"),
  "evaluators": TOP,
  "trainers": (*TOP, "zoo", "hub", "lora", "trainers"),
  "trainers.train": (*TOP, "hub", "trainers", "cli"),
  "cli": (*TOP, "zoo", "hub", "lora", "systems", "trainers"),
}
# Never imported at the top of a file of these parts: they start slowly, or do not belong there.
HEAVY = ("tensorflow_datasets", "sklearn", "matplotlib", "tensorboardX", "orbax", "scipy", "grain")
LIGHT_EXCEPTIONS = {"data": ("grain",), "processing": ("scipy",), "layers": ("scipy",)}
NUMPY_ONLY = ("jax", "flax", "optax", "orbax", "tensorflow", "torch")


def module_of(path: pathlib.Path) -> str:
  """`trainers/train.py` to "trainers.train", `bigvlm/layers/rope.py` to "layers.rope"."""
  parts = path.with_suffix("").parts
  parts = parts[1:] if parts[0] == "bigvlm" else parts
  return ".".join(p for p in parts if p != "__init__")


def imports_of(path: pathlib.Path) -> list[tuple[str, bool, int]]:
  """(module, at the top of the file, line) of every import; `from a import b` gives a.b."""
  tree = ast.parse((ROOT / path).read_text("utf-8"))
  inside = {id(n) for f in ast.walk(tree) if isinstance(f, FUNCTIONS) for n in ast.walk(f)}
  found = []
  for node in ast.walk(tree):
    top = id(node) not in inside
    if isinstance(node, ast.Import):
      found.extend((alias.name, top, node.lineno) for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
      assert not node.level, f"{path}:{node.lineno}: relative import"
      found.extend((f"{node.module}.{alias.name}", top, node.lineno) for alias in node.names)
    elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
      if isinstance(node.args[0], ast.Constant):
        found.append((node.args[0].value, top, node.lineno))
  return found


FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)


def within(module: str, prefixes: tuple[str, ...]) -> bool:
  return any(module == p or module.startswith(p + ".") for p in prefixes)


@pytest.mark.parametrize("path", EVERYTHING, ids=str)
def test_only_the_bigvlm_spelling(path):
  for module, _, line in imports_of(path):
    assert not within(module, BESIDE), f"{path}:{line}: import bigvlm.{module} instead"
    assert not module.startswith("bigvlm.bigvlm"), f"{path}:{line}: {module}"


@pytest.mark.parametrize("path", FILES, ids=str)
def test_layers_of_the_house(path):
  module = module_of(path)
  rules = [key for key in ALLOWED if within(module, (key,))]
  if not module:  # bigvlm/__init__.py
    assert all(not m.startswith("bigvlm") for m, top, _ in imports_of(path) if top)
    return
  assert rules, f"{path}: tests/test_imports.py has no rule for {module}"
  allowed = ALLOWED[max(rules, key=len)]
  for name, _, line in imports_of(path):
    if name.startswith("bigvlm."):
      ours = name.removeprefix("bigvlm.")
      assert within(ours, (*allowed, "__version__")), f"{path}:{line}: {module} imports {name}"


@pytest.mark.parametrize("path", FILES, ids=str)
def test_heavy_imports_are_inside_functions(path):
  part = module_of(path).split(".")[0]
  for name, top, line in imports_of(path):
    heavy = within(name, tuple(h for h in HEAVY if h not in LIGHT_EXCEPTIONS.get(part, ())))
    assert not (top and heavy), f"{path}:{line}: import {name} inside the function that needs it"
    if part == "processing" or (part == "data" and top):
      assert not within(name, NUMPY_ONLY), f"{path}:{line}: {part} imports {name}"


@pytest.mark.parametrize("path", FILES, ids=str)
def test_tensorflow_and_torch_stay_out(path):
  for name, _, line in imports_of(path):
    if within(name, ("tensorflow", "torch", "transformers", "torchvision")):
      assert path.parts[0] == "data" and path.name.startswith("sources"), f"{path}:{line}: {name}"


@pytest.mark.parametrize("path", FILES, ids=str)
def test_nothing_unsafe(path):
  tree = ast.parse((ROOT / path).read_text("utf-8"))
  for name, _, line in imports_of(path):
    unsafe = within(name, ("pickle", "dill", "cloudpickle", "marshal", "shelve"))
    assert not unsafe, f"{path}:{line}: {name} runs code from files"
  for node in ast.walk(tree):
    if not isinstance(node, ast.Call):
      continue
    called = ast.unparse(node.func)
    where = f"{path}:{node.lineno}: {called}"
    assert called not in ("eval", "exec", "os.system", "yaml.load", "yaml.unsafe_load"), where
    for keyword in node.keywords:
      on = isinstance(keyword.value, ast.Constant) and keyword.value.value is True
      assert not (on and keyword.arg in ("allow_pickle", "trust_remote_code", "shell")), where


FAMILIES = "siglip clip gemma paligemma llama llava qwen dinov2 internvl mistral phi blip flamingo"


@pytest.mark.parametrize("path", [p for p in FILES if "layers" in p.parts], ids=str)
def test_no_model_names_inside_layers(path):
  tree = ast.parse((ROOT / path).read_text("utf-8"))
  docs = {
    id(n.body[0].value)
    for n in ast.walk(tree)
    if isinstance(n, (ast.Module, ast.ClassDef, *FUNCTIONS[:2])) and ast.get_docstring(n)
  }
  for node in ast.walk(tree):
    texts = [getattr(node, "id", ""), getattr(node, "name", "")]
    if isinstance(node, ast.Attribute) and node.attr != "clip":  # numpy has a function clip.
      texts.append(node.attr)
    if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docs:
      texts.append(node.value)
    for text in (str(t).lower() for t in texts):
      for family in FAMILIES.split():
        words = text.replace(".", "_").replace("/", "_").replace(" ", "_").split("_")
        assert family not in words, f"{path}:{node.lineno}: {text!r} names a model family"


@pytest.mark.parametrize("folder", FOLDERS)
def test_init_files_are_there_and_empty(folder):
  for path in {p.parent for p in (ROOT / folder).rglob("*.py")}:
    init = path / "__init__.py"
    assert init.is_file(), f"{path.relative_to(ROOT)} lacks __init__.py and would not be installed"
    if init != ROOT / "bigvlm" / "__init__.py":
      assert not init.read_text().strip(), f"{init.relative_to(ROOT)} is not empty"


def test_every_module_imports():
  for path in FILES:
    name = ".".join(filter(None, ("bigvlm", module_of(path))))
    assert importlib.import_module(name).__name__ == name


def test_importing_the_trainer_is_light():
  """Neither the package nor the trainer loads what a run may never need."""
  code = "import sys, bigvlm; early = 'jax' in sys.modules; import bigvlm.trainers.train;"
  code += f"print(early, [m for m in {HEAVY + ('tensorflow', 'torch')!r} if m in sys.modules])"
  done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
  assert done.returncode == 0, done.stderr
  assert done.stdout.split(maxsplit=1)[0] == "False", "import bigvlm imports jax"
  assert done.stdout.split(maxsplit=1)[1].strip() == "[]", f"heavy imports: {done.stdout}"
