"""What this machine sustains: plausible, and by kernels that answer rightly."""

import numpy as np

from tsexport.quantize.balance import SIDE, _product, measure_balance


def test_products_are_right():
    generator = np.random.default_rng(0)
    left = generator.integers(0, 128, (SIDE, SIDE)).astype(np.uint8)
    right = generator.integers(-64, 64, (SIDE, SIDE)).astype(np.int8)
    (answer,) = _product("MatMulInteger", left, right, 1)()
    np.testing.assert_array_equal(answer, left.astype(np.int64) @ right.astype(np.int64))


def test_a_measurement_is_plausible():
    """From a slow busy core to more than any CPU's AMX."""
    balance = measure_balance(1)
    assert balance.threads == 1
    assert 0.05 < balance.fp32_gmacs_per_s < 2_000
    assert 0.05 < balance.int8_gmacs_per_s < 50_000
    assert 0.05 < balance.copy_gb_per_s < 2_000
    assert balance.cached_copy_gb_per_s > 0.5 * balance.copy_gb_per_s
