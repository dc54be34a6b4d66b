"""What a wheel and an editable install give, looked at from another folder."""

import pathlib
import shutil
import subprocess
import sys
import sysconfig
import zipfile

import pytest

FOLDERS = ("configs", "trainers", "data", "evaluators")
LEFT_OUT = (".git", ".venv", ".cache", "workdir", "build", "dist", "*.egg-info", "__pycache__")


def run(*command, cwd):
  done = subprocess.run([str(c) for c in command], cwd=cwd, capture_output=True, text=True)
  assert done.returncode == 0, f"{' '.join(map(str, command))}\n{done.stdout}{done.stderr}"
  return done.stdout.strip()


@pytest.fixture(scope="module")
def checkout(root, tmp_path_factory):
  """A copy: building leaves files beside setup.py."""
  copy = tmp_path_factory.mktemp("packaging") / "checkout"
  shutil.copytree(root, copy, ignore=shutil.ignore_patterns(*LEFT_OUT))
  return copy


@pytest.fixture(scope="module")
def wheel(checkout):
  out = checkout.parent / "dist"
  flags = ("--no-deps", "--no-build-isolation", "--quiet", "--wheel-dir", out)
  run(sys.executable, "-m", "pip", "wheel", *flags, checkout, cwd=checkout.parent)
  return next(out.glob("bigvlm-*.whl"))


@pytest.fixture(scope="module", params=["wheel", "editable"])
def installed(request, checkout, wheel):
  """Python of an environment that has bigvlm, and everything else from this one."""
  venv = checkout.parent / request.param
  run(sys.executable, "-m", "venv", "--without-pip", venv, cwd=checkout.parent)
  python = venv / "bin" / "python"
  site = run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=venv)
  # Only a path: the .pth files of this environment, bigvlm's own among them, are not read.
  (pathlib.Path(site) / "others.pth").write_text(sysconfig.get_path("purelib") + "\n")
  what = (wheel,) if request.param == "wheel" else ("-e", checkout)
  flags = ("--no-deps", "--no-build-isolation", "--ignore-installed", "--quiet")
  run(sys.executable, "-m", "pip", "--python", python, "install", *flags, *what, cwd=venv)
  return python


def test_wheel_holds_everything_under_bigvlm(wheel, root):
  names = [n for n in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in n]
  assert {n.split("/")[0] for n in names} == {"bigvlm"}, "something else lands in site-packages"
  wanted = {str(p.relative_to(root)) for p in (root / "bigvlm").rglob("*.py")}
  for folder in FOLDERS:
    wanted |= {f"bigvlm/{p.relative_to(root)}" for p in (root / folder).rglob("*.py")}
  assert wanted == {n for n in names if n.endswith(".py")}


def test_metadata(wheel):
  archive = zipfile.ZipFile(wheel)
  texts = {n.split("/")[-1]: archive.read(n).decode() for n in archive.namelist() if "info/" in n}
  assert "bigvlm = bigvlm.cli:main" in texts["entry_points.txt"]
  core = [line for line in texts["METADATA"].splitlines() if line.startswith("Requires-Dist")]
  core = [line.split()[1].lower() for line in core if "extra ==" not in line]
  assert any(c.startswith("safetensors") for c in core)
  assert any(c.startswith("huggingface_hub") for c in core)
  assert not [c for c in core if c.startswith(("torch", "transformers", "tensorflow>", "opencv"))]


def test_imports_from_another_folder(installed, tmp_path):
  code = "import bigvlm.trainers.train, bigvlm.evaluators.table, bigvlm.data.loader, bigvlm;"
  code += "from bigvlm import config; print(bigvlm.__version__, *config.shipped())"
  version, *shipped = run(installed, "-c", code, cwd=tmp_path).split()
  assert version and "quickstart" in shipped and "models/siglip" in shipped
  leaked = "import importlib.util as u; print([f for f in ('trainers', 'configs', 'evaluators')"
  assert run(installed, "-c", leaked + " if u.find_spec(f)])", cwd=tmp_path) == "[]"


def test_imports_from_the_root_of_a_clone(installed, checkout):
  """The clone shadows an installed wheel there, and must still be whole."""
  code = "import bigvlm.trainers.train as t; print(t.__file__)"
  assert run(installed, "-c", code, cwd=checkout) == str(checkout / "trainers" / "train.py")


def test_command(installed, tmp_path):
  command = installed.parent / "bigvlm"
  assert "commands:" in run(command, "--help", cwd=tmp_path)
  assert run(command, "--version", cwd=tmp_path)


def test_lock_is_complete_and_clean(root):
  """Every pin has hashes, and neither addresses nor paths of a machine got in."""
  lines = (root / "requirements" / "lock.txt").read_text().splitlines()
  pins = [i for i, line in enumerate(lines) if "==" in line and not line.startswith((" ", "#"))]
  assert len(pins) > 50
  for i in pins:
    assert lines[i + 1].strip().startswith("--hash=sha256:"), lines[i]
  for line in lines:
    assert "://" not in line and "index" not in line.split("#")[0] and " /" not in line, line
    assert not line.startswith(("torch==", "transformers==", "tensorflow==")), line
