"""The options that programs are compiled with, on an XLA that may lack some of them."""

import warnings

import jax
import pytest

from bigvlm.utils import jaxcache


@pytest.mark.parametrize("options", [jaxcache.SOON, jaxcache.QUICK])
def test_this_xla_has_all_of_ours(options):
  with warnings.catch_warnings():
    warnings.simplefilter("error")
    assert jaxcache.known(options) == options


def test_option_that_xla_dropped_is_named_and_left_out():
  options = dict(xla_cpu_dropped_by_a_newer_one=True, **jaxcache.SOON)
  with pytest.warns(UserWarning, match="no option xla_cpu_dropped_by_a_newer_one any more"):
    assert jaxcache.known(options) == jaxcache.SOON


def test_wrong_value_is_not_taken_for_a_dropped_option():
  with pytest.raises(jax.errors.JaxRuntimeError, match="xla_backend_optimization_level"):
    jaxcache.known(dict(xla_backend_optimization_level="high"))
