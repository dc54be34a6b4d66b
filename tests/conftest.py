"""Settings of every test process, made before jax is imported.

Eight fake CPU devices, no optimisation, and compiled programs kept in .cache/ of the checkout: the
second run of the tests is several times faster than the first.
"""

import os
import pathlib
import re

ROOT = pathlib.Path(__file__).resolve().parent.parent

os.environ["JAX_PLATFORMS"] = "cpu"
_others = re.sub(r"--xla_force_host_platform_device_count=\d+", "", os.environ.get("XLA_FLAGS", ""))
# The time of the tests is compilation: programs that run once need no optimisation.
_ours = "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
_ours += " --xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
os.environ["XLA_FLAGS"] = f"{_others} {_ours}".strip()
# Processes that tests start read the same cache.
os.environ["BIGVLM_CACHE"] = str(ROOT / ".cache" / "tests")
os.environ.setdefault("MPLBACKEND", "agg")

import jax  # noqa: E402
import pytest  # noqa: E402

from bigvlm.utils import jaxcache  # noqa: E402
from tests.parity import weights  # noqa: E402

jaxcache.enable()


def pytest_sessionstart(session) -> None:
  """Draws the weights of the fixtures, before there are workers."""
  if not hasattr(session.config, "workerinput"):
    weights.restore_all(ROOT / "tests" / "fixtures")


# Files that take minutes come first, so that the processes end at about the same time.
SLOW = (
  "reliability",
  "hub/test_parity",
  "configs/test_recipes",
  "hub/test_zoo_systems",
  "trainers",
)


def pytest_collection_modifyitems(items) -> None:
  """Sorts the tests by `SLOW`; otherwise their order stays."""

  def place(item) -> int:
    name = str(item.path.relative_to(ROOT / "tests"))
    return next((n for n, start in enumerate(SLOW) if name.startswith(start)), len(SLOW))

  items.sort(key=place)


@pytest.fixture(scope="module", autouse=True)
def _no_more_programs_than_a_module():
  """Forgets compiled programs: each holds memory maps, of which a process has only so many."""
  yield
  jax.clear_caches()


@pytest.fixture(scope="session")
def root() -> pathlib.Path:
  """The root of the checkout."""
  return ROOT


@pytest.fixture
def workdir(tmp_path) -> pathlib.Path:
  """A folder for one run, that does not exist yet."""
  return tmp_path / "workdir"


@pytest.fixture(scope="session")
def devices() -> list:
  """The eight fake CPU devices."""
  found = jax.devices()
  assert len(found) == 8, "jax was imported before tests/conftest.py could ask for 8 devices"
  return found
