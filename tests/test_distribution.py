import math

import pytest

from tf_sparsity import distribution as d

LENET = [(784, 300), (300, 100), (100, 10)]
CONV = [(3, 3, 3, 16), (3, 3, 16, 16), (3, 3, 16, 32), (3, 3, 32, 64), (64, 10)]
PATHS = ["first/kernel", "second/kernel", "head/kernel"]


@pytest.mark.parametrize(
    "sparsity, expected",
    [
        (0.8, (0.162241, 0.469362, 1.0)),
        (0.9, (0.079568, 0.230189, 1.0)),
        (0.95, (0.038484, 0.111334, 0.918507)),
    ],
)
def test_erk_of_lenet_300_100(sparsity, expected):
    assert d.erk_densities(LENET, sparsity) == pytest.approx(expected, abs=5e-7)


def test_erk_by_hand():
    # raw * n = sum(shape): 8, 20, of n = 16, 64. Budget 0.5 * 80 = 40 = eps * 28.
    # densities 40/28 * (8/16, 20/64), the first 0.714, nothing dense
    assert d.erk_densities([(4, 4), (4, 16)], 0.5) == pytest.approx([5 / 7, 25 / 56], rel=1e-12)
    # at 0.25 the budget is 60: eps 60/28 gives 1.07, so the first is dense, 44 of 64 are left
    assert d.erk_densities([(4, 4), (4, 16)], 0.25) == [1.0, 0.6875]


def test_erk_of_a_conv_net():
    # n = 432 + 2304 + 4608 + 18432 + 640 = 26416, budget 2641.6, the Dense kernel is dense: 2001.6
    # are left for sums of shapes 25 + 38 + 54 + 102 = 219. RigL's code floors each kernel's zeros:
    # 2004 instead of 2001.6, that is (.529554, .150923, .107235, .050639, 1), a total of .10009.
    eps = 2001.6 / 219
    expected = [eps * 25 / 432, eps * 38 / 2304, eps * 54 / 4608, eps * 102 / 18432, 1.0]
    assert d.erk_densities(CONV, 0.9) == pytest.approx(expected, rel=1e-12)
    assert expected[0] == pytest.approx(0.528919, abs=5e-7)


@pytest.mark.parametrize("shapes", [LENET, CONV, [(3, 3)] * 4, [(1000, 1000), (2, 2), (2, 1)]])
@pytest.mark.parametrize("sparsity", [0.0, 1e-9, 0.01, 0.3, 0.5, 0.8, 0.9, 0.99])
def test_erk_meets_the_budget_and_solves_again(shapes, sparsity):
    densities = d.erk_densities(shapes, sparsity)
    sizes = [math.prod(shape) for shape in shapes]
    total = math.fsum(n * density for n, density in zip(sizes, densities))
    assert total == pytest.approx((1 - sparsity) * sum(sizes), rel=1e-12)
    assert all(0 < density <= 1 for density in densities)
    # one eps for all that are not dense
    eps = [n * x / sum(shape) for n, x, shape in zip(sizes, densities, shapes) if x < 1]
    assert all(e == pytest.approx(eps[0], rel=1e-12) for e in eps)
    if sparsity == 0:
        assert densities == [1.0] * len(shapes)


def test_erk_sparsity_of_a_kernel_never_falls():
    path = [d.erk_densities(CONV, s / 100) for s in range(100)]
    for now, later in zip(path, path[1:]):
        assert all(a >= b for a, b in zip(now, later))


def test_uniform_and_erk_sparsities():
    assert d.sparsities("uniform", PATHS, LENET, 0.3, 0.9) == [0.3] * 3
    assert d.sparsities("erk", PATHS, LENET, 0.95, 0.95) == pytest.approx(
        [1 - 0.038484, 1 - 0.111334, 1 - 0.918507], abs=5e-7
    )
    assert d.sparsities("erk", PATHS, LENET, 0.0, 0.95) == [0.0] * 3


def test_a_map_scales_with_the_schedule_and_the_first_key_wins():
    sparsity_map = {"^first": 0.5, "(first|head)/": 0.25}
    assert d.sparsities(sparsity_map, PATHS, LENET, 0.9, 0.9) == [0.5, 0.9, 0.25]
    assert d.sparsities(sparsity_map, PATHS, LENET, 0.45, 0.9) == [0.25, 0.45, 0.125]
    assert d.sparsities(sparsity_map, PATHS, LENET, 0.0, 0.9) == [0.0, 0.0, 0.0]
    assert d.sparsities({"head": 0}, PATHS, LENET, 0.9, 0.9) == [0.9, 0.9, 0.0]
    # 0.85 * 0.9 / 0.9 is 0.8500000000000001
    assert d.sparsities({"head": 0.85}, PATHS, LENET, 0.9, 0.9)[2] == 0.85


@pytest.mark.parametrize("distribution", ["uniform", "erk", "global", {"a": 0.5}, {"a": 0}])
def test_valid(distribution):
    d.validate(distribution)


@pytest.mark.parametrize(
    "distribution, error, message",
    [
        ("er", ValueError, "Unknown distribution 'er'. Use 'uniform', 'erk', 'global' or a map"),
        (0.5, TypeError, "distribution must be .* got 0.5"),
        ({}, ValueError, "map is empty"),
        ({"a": 1.0}, ValueError, r"The sparsity for 'a' must be .* \[0, 1\), got 1.0"),
        ({"a": -0.1}, ValueError, "The sparsity for 'a'"),
        ({"a": "0.5"}, TypeError, "must be a number, got '0.5'"),
        ({"a": True}, TypeError, "must be a number, got True"),
        ({1: 0.5}, TypeError, "must be a regex string, got 1"),
        ({"(": 0.5}, ValueError, "not a regular expression"),
    ],
)
def test_invalid(distribution, error, message):
    with pytest.raises(error, match=message):
        d.validate(distribution)


@pytest.mark.parametrize(
    "distribution, final, message",
    [
        ({"third": 0.5}, 0.9, "'third' .* matches no kernel. Kernels: first/kernel, second/kernel"),
        ({"first": 0.5}, 0.0, "final sparsity above 0"),
        ("global", 0.9, "masks.global_masks"),
    ],
)
def test_sparsities_errors(distribution, final, message):
    with pytest.raises(ValueError, match=message):
        d.sparsities(distribution, PATHS, LENET, 0.0, final)
