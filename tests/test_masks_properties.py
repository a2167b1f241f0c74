"""Promises of masks.py over drawn shapes, sparsities, patterns and scores (with ties)."""

from fractions import Fraction

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from tf_sparsity import masks as m

ROLES = [
    ("in", "out"),
    ("kw", "in", "out"),
    ("kh", "kw", "out", "in"),
    ("in", "out:head", "out"),
    ("in:head", "in", "out"),
    ("out", "in", "batch"),
]
quick = settings(deadline=None, max_examples=100, derandomize=True)
sparsities = st.integers(0, 999).map(lambda i: i / 1000)
levels = st.sampled_from([1, 3, 1000])  # number of distinct scores
seeds = st.integers(0, 2**32 - 1)
groupings = st.one_of(
    st.just(None),
    st.just("channel"),
    st.tuples(st.integers(1, 4), st.integers(1, 5)).map(lambda rc: f"{rc[0]}x{rc[1]}"),
).map(m.parse)
n_of_m = st.tuples(st.integers(1, 4), st.integers(1, 4)).map(lambda p: m.NM(p[0], p[0] + p[1]))


@st.composite
def kernels(draw, count=1):
    result = []
    for _ in range(count):
        axes = draw(st.sampled_from(ROLES))
        shape = tuple(draw(st.integers(1, 7)) for _ in axes)
        rng = np.random.default_rng(draw(seeds))
        scores = rng.integers(0, draw(levels), shape).astype(np.float32)
        result.append((scores, axes))
    return result


def expected_zeros(size, sparsity):
    """Half to even, written without Fraction's own rounding."""
    exact = size * Fraction(str(sparsity))
    floor = exact.numerator // exact.denominator
    half = exact - floor - Fraction(1, 2)
    return floor + (half > 0 or (half == 0 and floor % 2 == 1))


def lowest_by_sorting(scores, count):
    """The slow oracle: True where a flat score is among the `count` lowest."""
    order = sorted(range(len(scores)), key=lambda i: (scores[i], -i))
    gone = np.zeros(len(scores), bool)
    gone[order[:count]] = True
    return gone


@quick
@given(kernels(), sparsities, st.integers(0, 5))
def test_unstructured_is_sorting(drawn, sparsity, min_keep):
    ((scores, axes),) = drawn
    count = min(expected_zeros(scores.size, sparsity), max(scores.size - min_keep, 0))
    mask = m.kernel_mask(scores, sparsity, m.parse(None), axes, min_keep=min_keep)
    np.testing.assert_array_equal(mask.ravel() == 0, lowest_by_sorting(scores.ravel(), count))
    again = m.kernel_mask(scores.copy(), sparsity, m.parse(None), axes, min_keep=min_keep)
    assert mask.tobytes() == again.tobytes()


@quick
@given(kernels(), sparsities, groupings, st.integers(0, 5))
def test_groups_are_whole_and_their_number_is_exact(drawn, sparsity, pattern, min_keep):
    ((scores, axes),) = drawn
    mask = m.kernel_mask(scores, sparsity, pattern, axes, min_keep=min_keep)
    assert mask.shape == scores.shape and mask.dtype == bool
    kept, sizes = pattern.pool(mask.astype("float32"), axes)
    assert set(kept) <= {0.0, 1.0}
    zeros = np.count_nonzero(kept == 0)
    assert mask.sum() >= min(min_keep, mask.size)
    at_most = max(kept.size - -(-min_keep // sizes.min()), 0)
    assert zeros == min(expected_zeros(kept.size, sparsity), at_most)
    means = pattern.pool(scores, axes)[0]
    if 0 < zeros < kept.size:
        assert means[kept == 0].max() <= means[kept == 1].min()


@quick
@given(kernels(), st.lists(sparsities, min_size=2, max_size=4), groupings, seeds)
def test_masks_nest(drawn, steps, pattern, seed):
    ((scores, axes),) = drawn
    rng = np.random.default_rng(seed)
    mask = np.ones(scores.shape, np.float32)
    for sparsity in steps:  # not sorted: a target that falls changes nothing
        scores = rng.random(scores.shape, np.float32) * mask
        after = m.kernel_mask(scores, sparsity, pattern, axes, previous=mask)
        assert not (after > mask).any()
        groups = pattern.pool(after, axes)[0]
        before = np.count_nonzero(pattern.pool(mask, axes)[0] == 0)
        target = min(expected_zeros(groups.size, sparsity), groups.size - 1)
        assert np.count_nonzero(groups == 0) == max(target, before)
        mask = after


@quick
@given(kernels(), n_of_m, st.lists(st.integers(0, 100), max_size=3), seeds)
def test_n_of_m(drawn, pattern, percents, seed):
    ((scores, axes),) = drawn
    rng = np.random.default_rng(seed)
    n_in = m.canonical(scores, axes).shape[2]
    mask = np.ones(scores.shape, np.float32)
    for percent in sorted(percents) + [100]:
        after = m.kernel_mask(
            scores, pattern.sparsity * percent / 100, pattern, axes, previous=mask
        )
        assert not (after > mask).any()
        kept = []
        for start in range(0, n_in, pattern.m):
            group = m.canonical(after, axes)[:, :, start : start + pattern.m]
            if group.shape[2] > pattern.n:
                kept += list(group.sum(axis=2).ravel() - group.shape[2])
            else:
                assert (group == 1).all()
        cut = np.count_nonzero(kept)
        assert abs(cut - len(kept) * percent / 100) <= 0.5 + 1e-9
        mask, scores = after, rng.random(scores.shape, np.float32) * after
    for start in range(0, n_in, pattern.m):
        group = m.canonical(mask, axes)[:, :, start : start + pattern.m]
        np.testing.assert_array_equal(group.sum(axis=2), min(group.shape[2], pattern.n))


@quick
@given(kernels(count=3), sparsities, sparsities, st.integers(0, 3))
def test_global_unstructured(drawn, first, second, min_keep):
    scores, axes = zip(*drawn)
    sizes = [s.size for s in scores]
    previous, so_far = None, 0
    for sparsity in (first, second):
        masks = m.global_masks(scores, sparsity, m.parse(None), axes, previous, min_keep)
        at_most = sum(max(size - min_keep, 0) for size in sizes)
        target = min(expected_zeros(sum(sizes), sparsity), at_most)
        zeros = sum(sizes) - sum(int(mask.sum()) for mask in masks)
        assert zeros == max(target, so_far)
        assert all(mask.sum() >= min(min_keep, mask.size) for mask in masks)
        if previous is None:
            # the same by sorting, each kernel's best set aside first
            flat = np.concatenate([s.ravel() for s in scores])
            aside = np.concatenate(
                [~lowest_by_sorting(s.ravel(), max(s.size - min_keep, 0)) for s in scores]
            )
            gone = lowest_by_sorting(np.where(aside, np.inf, flat), target)
            np.testing.assert_array_equal(np.concatenate([k.ravel() for k in masks]) == 0, gone)
        else:
            assert not any((a > b).any() for a, b in zip(masks, previous))
        previous, so_far = masks, zeros


@quick
@given(kernels(count=3), sparsities, groupings)
def test_global_groups_end_within_half_a_group(drawn, sparsity, pattern):
    scores, axes = zip(*drawn)
    masks = m.global_masks(scores, sparsity, pattern, axes)
    largest = max(pattern.pool(s, a)[1].max() for s, a in drawn)
    for mask, a in zip(masks, axes):
        assert set(pattern.pool(mask, a)[0]) <= {0.0, 1.0}
        assert mask.any()
    zeros = sum(mask.size - int(mask.sum()) for mask in masks)
    target = expected_zeros(sum(mask.size for mask in masks), sparsity)
    one_left = all(np.count_nonzero(pattern.pool(k, a)[0]) == 1 for k, a in zip(masks, axes))
    assert abs(zeros - target) <= largest / 2 or (one_left and zeros < target)
