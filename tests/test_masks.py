import numpy as np
import pytest

from tf_sparsity import masks as m

DENSE = ("in", "out")
CONV2D = ("kh", "kw", "in", "out")


def mask(scores, sparsity, pattern=None, axes=DENSE, **options):
    return m.kernel_mask(
        np.asarray(scores, np.float32), sparsity, m.parse(pattern), axes, **options
    )


def scores_of(shape, seed=0):
    """Distinct scores."""
    return np.random.default_rng(seed).permutation(np.prod(shape)).reshape(shape).astype("float32")


def zeros(array):
    return array.size - np.count_nonzero(array)


# ---- counts -------------------------------------------------------------------------------------


def test_counts_round_half_to_even_on_the_decimal_value():
    # 1.5 -> 2, 2.5 -> 2, 3.5 -> 4 and so on, whatever the binary float is
    counts = {0.05: 0, 0.15: 2, 0.25: 2, 0.35: 4, 0.45: 4, 0.55: 6, 0.65: 6, 0.75: 8, 0.85: 8}
    counts |= {0.0: 0, 0: 0, 0.95: 10, 0.94: 9, 0.999: 10}
    assert {s: m.count_zeros(10, s) for s in counts} == counts
    assert m.count_zeros(25_000_000, 0.9) == 22_500_000
    assert m.count_zeros(10**15 + 10, 0.9) == 9 * 10**14 + 9  # exact beyond floats
    assert m.count_zeros(10, np.float32(0.35)) == 4


@pytest.mark.parametrize("sparsity", [-0.1, 1.0, 1.5, float("nan")])
def test_sparsity_out_of_range(sparsity):
    with pytest.raises(ValueError, match=r"in \[0, 1\), got"):
        m.count_zeros(10, sparsity)


# ---- unstructured -------------------------------------------------------------------------------


def test_lowest_scores_go_first():
    result = mask([[5, 1, 4], [0, 3, 2]], 0.5)
    np.testing.assert_array_equal(result, [[1, 0, 1], [0, 1, 0]])
    assert result.dtype == bool


def test_among_equal_scores_the_lower_index_is_kept():
    np.testing.assert_array_equal(mask([[2, 1, 1, 1, 1, 0]], 0.5), [[1, 1, 1, 0, 0, 0]])
    np.testing.assert_array_equal(mask(np.zeros((2, 3)), 0.5), [[1, 1, 1], [0, 0, 0]])
    np.testing.assert_array_equal(mask([[-0.0, 0.0]], 0.5), [[1, 0]])
    # in C order of the kernel, whatever the layout in memory
    scores = np.asfortranarray(np.zeros((2, 3), np.float32))
    np.testing.assert_array_equal(mask(scores, 0.5), [[1, 1, 1], [0, 0, 0]])


@pytest.mark.parametrize("sparsity, kept", [(0.0, 4), (0.5, 2), (0.9, 1), (0.999, 1)])
def test_one_weight_is_kept(sparsity, kept):
    assert mask([[1, 2, 3, 4]], sparsity).sum() == kept


def test_min_keep():
    scores = [[1, 2, 3, 4]]
    np.testing.assert_array_equal(mask(scores, 0.9, min_keep=0), [[0, 0, 0, 0]])
    np.testing.assert_array_equal(mask(scores, 0.9, min_keep=2), [[0, 0, 1, 1]])
    np.testing.assert_array_equal(mask(scores, 0.9, min_keep=9), [[1, 1, 1, 1]])


def test_previous_zeros_stay_and_their_number_never_falls():
    previous = np.array([[1, 0, 1, 0]], np.float32)
    # index 1 has the best score now, and stays pruned
    np.testing.assert_array_equal(mask([[1, 9, 2, 3]], 0.75, previous=previous), [[0, 0, 1, 0]])
    np.testing.assert_array_equal(mask([[1, 9, 2, 3]], 0.25, previous=previous), previous)
    # free choice without it
    np.testing.assert_array_equal(mask([[1, 9, 2, 3]], 0.75), [[0, 1, 0, 0]])
    # pruned weights score 0 like a kept one: the kept one goes only when it must
    previous = np.array([[1, 1, 0, 0]], np.float32)
    np.testing.assert_array_equal(mask([[0, 1, 0, 0]], 0.5, previous=previous), previous)
    # an emptied kernel stays empty
    assert mask([[1, 2]], 0.5, previous=np.zeros((1, 2), np.float32)).sum() == 0


def test_infinite_and_wide_scores():
    inf = np.inf
    np.testing.assert_array_equal(mask([[-inf, 0, inf, inf]], 0.5), [[0, 0, 1, 1]])
    previous = np.array([[0, 1, 1, 1]], np.float32)
    np.testing.assert_array_equal(
        mask([[1, -inf, -inf, 2]], 0.5, previous=previous), [[0, 1, 0, 1]]
    )
    # float64 scores are not narrowed: 1e-50 and 2e-50 are both 0 in float32
    tiny = np.array([[2e-50, 1e-50]])
    np.testing.assert_array_equal(m.kernel_mask(tiny, 0.5, m.parse(None), DENSE), [[1, 0]])
    half = np.array([[2, 1]], np.float16)
    np.testing.assert_array_equal(m.kernel_mask(half, 0.5, m.parse(None), DENSE), [[1, 0]])


def test_kernels_without_weights():
    assert mask(np.ones((0, 3)), 0.5).shape == (0, 3)


# ---- axes ---------------------------------------------------------------------------------------

LAYOUTS = {
    "dense": (DENSE, (3, 5), (1, 5, 3)),
    "conv2d": (CONV2D, (2, 3, 4, 5), (6, 5, 4)),
    "conv2d_transpose": (("kh", "kw", "out", "in"), (2, 3, 5, 4), (6, 5, 4)),
    "query": (("in", "out:head", "out"), (7, 2, 3), (1, 6, 7)),
    "attention_output": (("in:head", "in", "out"), (2, 3, 7), (1, 7, 6)),
    "depthwise": (("kh", "kw", "out", "out:mult"), (2, 3, 4, 2), (6, 8, 1)),
    "embedding": (("vocab", "out"), (9, 4), (9, 4, 1)),
}


@pytest.mark.parametrize("axes, shape, view", LAYOUTS.values(), ids=LAYOUTS)
def test_canonical_view_and_back(axes, shape, view):
    array = scores_of(shape)
    assert m.canonical(array, axes).shape == view
    np.testing.assert_array_equal(m.restore(m.canonical(array, axes), shape, axes), array)


def test_canonical_view_by_hand():
    query = np.arange(12).reshape(2, 2, 3)  # 2 inputs, 2 heads of 3
    view = m.canonical(query, ("in", "out:head", "out"))
    np.testing.assert_array_equal(view[0, :, 0], query[0].ravel())  # head by head
    output = np.arange(12).reshape(2, 3, 2)  # 2 heads of 3, 2 outputs
    view = m.canonical(output, ("in:head", "in", "out"))
    np.testing.assert_array_equal(view[0, 1], output[:, :, 1].ravel())
    transposed = np.arange(4).reshape(1, 1, 2, 2)  # out, in
    np.testing.assert_array_equal(
        m.canonical(transposed, ("kh", "kw", "out", "in"))[0], [[0, 1], [2, 3]]
    )


# ---- blocks -------------------------------------------------------------------------------------


def test_blocks_are_outputs_x_inputs():
    # Keras' Dense kernel is (in, out): "1x2" pairs two rows of one column
    scores = [[1, 9, 5], [1, 9, 6], [8, 2, 7], [8, 2, 7]]
    expected = [[0, 1, 0], [0, 1, 0], [1, 0, 1], [1, 0, 1]]
    np.testing.assert_array_equal(mask(scores, 0.5, "1x2"), expected)
    # "2x1" pairs two columns of one row
    scores = [[1, 1, 9, 9], [8, 8, 2, 2]]
    np.testing.assert_array_equal(mask(scores, 0.5, "2x1"), [[0, 0, 1, 1], [1, 1, 0, 0]])


def test_block_score_is_the_mean_and_ragged_blocks_count_as_one():
    # 3 inputs in blocks of 2: means 2, 3 (out 0) and 4, 1 (out 1)
    scores = [[0, 5], [4, 3], [3, 1]]
    np.testing.assert_array_equal(mask(scores, 0.25, "1x2"), [[1, 1], [1, 1], [1, 0]])
    np.testing.assert_array_equal(mask(scores, 0.5, "1x2"), [[0, 1], [0, 1], [1, 0]])
    np.testing.assert_array_equal(mask(scores, 0.75, "1x2"), [[0, 1], [0, 1], [0, 0]])
    # 3 inputs x 3 outputs in 2x2: blocks of 4, 2 (outs 0-1, in 2), 2 (out 2, ins 0-1) and 1
    scores = [[4, 4, 3], [4, 4, 3], [2, 2, 1]]
    expected = [[1, 1, 1], [1, 1, 1], [0, 0, 0]]
    np.testing.assert_array_equal(mask(scores, 0.5, "2x2"), expected)


def test_blocks_larger_than_the_kernel_are_one():
    np.testing.assert_array_equal(mask([[1, 2]], 0.9, "4x4", min_keep=0), [[0, 0]])
    np.testing.assert_array_equal(mask([[1, 2]], 0.9, "4x4"), [[1, 1]])


def test_block_ties_keep_the_lower_index_of_the_canonical_order():
    # canonical order: out 0 (inputs 0-1, 2-3), then out 1
    np.testing.assert_array_equal(
        mask(np.ones((4, 2)), 0.5, "1x2"), [[1, 0], [1, 0], [1, 0], [1, 0]]
    )


def test_blocks_in_conv_kernels_run_along_the_input_channels():
    scores = np.ones((1, 2, 4, 2))
    scores[0, 1, 2:, 0] = 0
    expected = scores.copy()
    np.testing.assert_array_equal(mask(scores, 1 / 8, "1x2", CONV2D), expected)
    swapped = scores.swapaxes(2, 3)
    np.testing.assert_array_equal(
        mask(swapped, 1 / 8, "1x2", ("kh", "kw", "out", "in")), expected.swapaxes(2, 3)
    )


def test_blocks_in_attention():
    # attention_output: inputs are (head, dim) flattened, so "1x4" spans two heads of 2
    scores = np.ones((2, 2, 3))
    scores[:, :, 1] = 0
    np.testing.assert_array_equal(mask(scores, 0.34, "1x4", ("in:head", "in", "out")), scores)
    # query: outputs are (head, dim) flattened
    scores = np.ones((3, 2, 2))
    scores[1] = 0
    np.testing.assert_array_equal(mask(scores, 0.34, "4x1", ("in", "out:head", "out")), scores)


def test_min_keep_of_blocks():
    scores = [[1], [1], [2], [2], [3]]  # blocks of 2, 2 and 1 weights
    assert mask(scores, 0.9, "1x2", min_keep=1).sum() == 1
    # one weight is the smallest group, so two groups hold two for sure
    np.testing.assert_array_equal(
        mask(scores, 0.9, "1x2", min_keep=2).ravel(), [0, 0, 1, 1, 1]
    )
    assert mask(scores, 0.9, "1x2", min_keep=0).sum() == 0


def test_previous_of_blocks():
    previous = np.array([[1, 0, 0, 1]], np.float32).T  # of another pattern
    np.testing.assert_array_equal(
        mask(np.ones((4, 1)), 0.0, "1x2", previous=previous), previous
    )
    # nothing of the first block is left to go but one weight
    np.testing.assert_array_equal(
        mask([[1], [1], [2], [2]], 0.5, "1x2", previous=previous).ravel(), [0, 0, 0, 1]
    )


# ---- channels -----------------------------------------------------------------------------------


def test_channels_are_output_units():
    np.testing.assert_array_equal(
        mask([[1, 2, 3], [1, 2, 0]], 1 / 3, "channel"), [[0, 1, 1], [0, 1, 1]]
    )
    conv = np.ones((2, 2, 3, 4)) * [3, 1, 2, 4]
    np.testing.assert_array_equal(
        mask(conv, 0.5, "channel", CONV2D), np.ones((2, 2, 3, 4)) * [1, 0, 0, 1]
    )
    depthwise = np.ones((2, 2, 2, 2)) * [[3, 1], [2, 4]]  # 2 inputs x 2 multipliers
    np.testing.assert_array_equal(
        mask(depthwise, 0.5, "channel", ("kh", "kw", "out", "out:mult")),
        np.ones((2, 2, 2, 2)) * [[1, 0], [0, 1]],
    )
    embedding = np.ones((5, 2)) * [1, 2]
    np.testing.assert_array_equal(
        mask(embedding, 0.5, "channel", ("vocab", "out")), np.ones((5, 2)) * [0, 1]
    )


# ---- N:M ----------------------------------------------------------------------------------------


def test_2_of_4_along_the_inputs():
    scores = np.array([[1, 8], [4, 5], [3, 6], [2, 7]])
    np.testing.assert_array_equal(mask(scores, 0.5, "2:4"), [[0, 1], [1, 0], [1, 0], [0, 1]])
    # half of the two groups: out 0 loses (1 + 2) / 2, out 1 (5 + 6) / 2
    np.testing.assert_array_equal(mask(scores, 0.25, "2:4"), [[0, 1], [1, 1], [1, 1], [0, 1]])
    np.testing.assert_array_equal(mask(scores, 0.0, "2:4"), np.ones((4, 2)))


def test_n_of_m_ties():
    # inside a group the lower index is kept, and of equal groups the lower one stays whole
    np.testing.assert_array_equal(
        mask(np.ones((4, 2)), 0.25, "2:4"), [[1, 1], [1, 1], [1, 0], [1, 0]]
    )


@pytest.mark.parametrize("text", ["1:2", "1:3", "2:3", "1:4", "2:4", "4:8", "3:7", "1:16", "2:300"])
def test_the_final_sparsity_in_floats_cuts_every_group(text):
    pattern = m.parse(text)
    scores = scores_of((2 * pattern.m, 3))
    for sparsity in (pattern.sparsity, round(pattern.sparsity, 12), float(str(pattern.sparsity))):
        result = m.kernel_mask(scores, sparsity, pattern, DENSE)
        kept = result.reshape(2, pattern.m, 3).sum(axis=1)
        np.testing.assert_array_equal(kept, pattern.n)


@pytest.mark.parametrize("n_in, kept", [(1, 1), (2, 2), (3, 2), (4, 2), (5, 3), (6, 4), (7, 4)])
def test_an_incomplete_last_group_keeps_at_most_n(n_in, kept):
    scores = scores_of((n_in, 3)) + 1
    np.testing.assert_array_equal(mask(scores, 0.5, "2:4").sum(axis=0), [kept] * 3)
    np.testing.assert_array_equal(mask(-scores, 0.5, "2:4").sum(axis=0), [kept] * 3)


def test_groups_that_lose_nothing_are_not_counted():
    # inputs 0-3 are a group, inputs 4-5 lose nothing: half of 2 groups is 1
    assert zeros(mask(scores_of((6, 2)), 0.25, "2:4")) == 2


def test_n_of_m_in_conv_kernels_and_transposed_ones():
    scores = scores_of((3, 3, 8, 4))
    result = mask(scores, 0.5, "2:4", CONV2D)
    np.testing.assert_array_equal(result.reshape(3, 3, 2, 4, 4).sum(axis=3), 2)
    swapped = mask(scores.swapaxes(2, 3), 0.5, "2:4", ("kh", "kw", "out", "in"))
    np.testing.assert_array_equal(swapped, result.swapaxes(2, 3))


def test_cut_groups_stay_cut():
    scores = np.array([[1, 8], [4, 5], [3, 6], [2, 7]])
    half = mask(scores, 0.25, "2:4")
    later = mask(scores[::-1], 0.5, "2:4", previous=half)  # other scores now
    np.testing.assert_array_equal(later[:, 0], half[:, 0])
    np.testing.assert_array_equal(later[:, 1], [1, 0, 0, 1])
    np.testing.assert_array_equal(mask(scores, 0.0, "2:4", previous=half), half)


def test_n_of_m_after_another_pattern():
    previous = np.array([[1, 0, 1, 1], [0, 0, 0, 1]], np.float32).T
    scores = np.array([[5, 9, 4, 3], [9, 9, 9, 1]]).T
    np.testing.assert_array_equal(
        mask(scores, 0.5, "2:4", previous=previous), np.array([[1, 0, 1, 0], [0, 0, 0, 1]]).T
    )


def test_n_of_m_errors():
    with pytest.raises(ValueError, match=r"2:4 needs a sparsity in \[0, 0.5\], got 0.6"):
        mask(np.ones((4, 4)), 0.6, "2:4")
    with pytest.raises(ValueError, match="2:4 fixes the sparsity of every kernel"):
        m.global_masks([np.ones((4, 4))], 0.5, m.parse("2:4"), [DENSE])


def test_n_of_m_fixes_final_sparsity_and_distribution():
    m.parse("2:4").validate(0.5, "uniform")
    m.parse("1:3").validate(0.666666666667, "uniform")
    m.parse("1x4").validate(0.9, "global")
    with pytest.raises(ValueError, match="2:4 needs .* final sparsity of 1 - 2/4 = 0.5, got 0.6"):
        m.parse("2:4").validate(0.6, "uniform")
    for distribution in ("erk", "global", {"a": 0.5}):
        with pytest.raises(ValueError, match="fixes the sparsity of every kernel.*'uniform'"):
            m.parse("2:4").validate(0.5, distribution)


# ---- parse, axes and NaN: errors ----------------------------------------------------------------


def test_parse():
    assert m.parse(None) == m.Unstructured()
    assert m.parse("2:4") == m.NM(2, 4)
    assert m.parse("1x16") == m.Block(1, 16)
    assert m.parse("1x1") == m.Block(1, 1)
    assert m.parse("channel") == m.Channel()
    for text in ("2:4", "1x16", "channel"):
        assert str(m.parse(text)) == text
    assert m.parse("2:4").sparsity == 0.5


@pytest.mark.parametrize(
    "text", ["", "4:2", "4:4", "0:4", "0x4", "4x0", "2-4", "a:b", "filter", "1x2x3", "-1:4", 4]
)
def test_unknown_patterns(text):
    with pytest.raises(ValueError, match="Unknown pattern .* 'N:M' .* 'RxC' .* 'channel'"):
        m.parse(text)


DEPTHWISE = ("kh", "kw", "out", "out:mult")
DEPTHWISE_TEXT = "axes (kh, kw, out, out:mult)"


@pytest.mark.parametrize(
    "text, axes, reason",
    [
        (None, ("free",), None),
        ("2:4", DENSE, None),
        ("2:4", ("in:head", "in", "out"), None),
        ("2:4", DEPTHWISE, "pattern 2:4 needs an input axis, this kernel has " + DEPTHWISE_TEXT),
        ("1x4", DEPTHWISE, "pattern 1x4 needs an input axis, this kernel has " + DEPTHWISE_TEXT),
        (
            "4x4",
            ("vocab", "out"),
            "pattern 4x4 needs an input axis, this kernel has axes (vocab, out)",
        ),
        ("4x1", ("in",), "pattern 4x1 needs an output axis, this kernel has axes (in)"),
        ("4x1", DEPTHWISE, None),
        ("1x4", ("in",), None),
        ("1x1", ("batch",), None),
        ("channel", ("in",), "pattern channel needs an output axis, this kernel has axes (in)"),
        ("channel", DEPTHWISE, None),
    ],
)
def test_unsupported(text, axes, reason):
    assert m.parse(text).unsupported(axes) == reason
    if reason:
        with pytest.raises(ValueError, match="needs an .*Use pattern=None or do not select it"):
            mask(np.ones((4,) * len(axes)), 0.5, text, axes)


def test_wrong_number_of_axes():
    with pytest.raises(ValueError, match=r"one axis role per kernel axis, got \('in', 'out'\)"):
        mask(np.ones((2, 2, 2)), 0.5)


@pytest.mark.parametrize("pattern", [None, "1x2", "channel", "2:4"])
@pytest.mark.parametrize("sparsity", [0.0, 0.5])
def test_nan(pattern, sparsity):
    scores = np.ones((4, 4), np.float32)
    scores[1, 2] = np.nan
    with pytest.raises(ValueError, match=r"scores contain NaN \(1 of 16\); weights are NaN: check"):
        mask(scores, sparsity, pattern)
    if pattern != "2:4":
        with pytest.raises(ValueError, match="scores contain NaN"):
            m.global_masks([scores], sparsity, m.parse(pattern), [DENSE])


# ---- global -------------------------------------------------------------------------------------


def global_masks(scores, sparsity, pattern=None, **options):
    scores = [np.asarray(s, np.float32) for s in scores]
    return m.global_masks(scores, sparsity, m.parse(pattern), [DENSE] * len(scores), **options)


def test_one_ranking_over_all_kernels():
    first, second = global_masks([[[1, 2], [9, 8]], [[3, 4, 7, 6]]], 0.5)
    np.testing.assert_array_equal(first, [[0, 0], [1, 1]])
    np.testing.assert_array_equal(second, [[0, 0, 1, 1]])
    assert first.dtype == second.dtype == bool


def test_global_ties_keep_the_earlier_kernel_and_the_lower_index():
    first, second = global_masks([np.ones((1, 3)), np.ones((1, 3))], 0.5, min_keep=0)
    np.testing.assert_array_equal(first, [[1, 1, 1]])
    np.testing.assert_array_equal(second, [[0, 0, 0]])
    # the second kernel keeps its first weight, so the first kernel gives its last
    first, second = global_masks([np.ones((1, 3)), np.ones((1, 3))], 0.5)
    np.testing.assert_array_equal(first, [[1, 1, 0]])
    np.testing.assert_array_equal(second, [[1, 0, 0]])


def test_global_min_keep_is_exact_in_total():
    kernels = [[[1, 2, 3]], [[10, 11, 12, 13, 14, 15, 16]]]
    first, second = global_masks(kernels, 0.5)
    np.testing.assert_array_equal(first, [[0, 0, 1]])
    np.testing.assert_array_equal(second, [[0, 0, 0, 1, 1, 1, 1]])
    first, second = global_masks(kernels, 0.5, min_keep=0)
    np.testing.assert_array_equal(first, [[0, 0, 0]])
    np.testing.assert_array_equal(second, [[0, 0, 1, 1, 1, 1, 1]])
    first, second = global_masks(kernels, 0.9, min_keep=2)  # 9 zeros cannot be had: 10 - 2 * 2
    np.testing.assert_array_equal(first, [[0, 1, 1]])
    np.testing.assert_array_equal(second, [[0, 0, 0, 0, 0, 1, 1]])


def test_protecting_one_kernel_can_starve_another():
    # 6 zeros of 8: {1}, {2, 3}, then 4, 5, 6; each kernel of the first two keeps its best
    result = global_masks([[[1]], [[2, 3]], [[4, 5, 6, 7, 8]]], 0.625)
    np.testing.assert_array_equal(result[0], [[1]])
    np.testing.assert_array_equal(result[1], [[0, 1]])
    np.testing.assert_array_equal(result[2], [[0, 0, 0, 0, 1]])


def test_global_previous():
    kernels = [np.array([[1, 9]]), np.array([[2, 3]])]
    previous = [np.array([[1, 0]], np.float32), np.array([[1, 1]], np.float32)]
    first, second = global_masks(kernels, 0.5, previous=previous)
    np.testing.assert_array_equal(first, [[1, 0]])  # its only weight left stays
    np.testing.assert_array_equal(second, [[0, 1]])
    for result, before in zip(global_masks(kernels, 0.0, previous=previous), previous):
        np.testing.assert_array_equal(result, before)


def test_global_channels_stop_at_the_nearest_total():
    # channels of 2 weights (scores 1, 4) and of 5 weights (scores 2, 3): order 2, 5, 5, 2 of 14
    kernels = [np.ones((2, 2)) * [1, 4], np.ones((5, 2)) * [2, 3]]
    totals = {
        s: sum(zeros(k) for k in global_masks(kernels, s, "channel", min_keep=0))
        for s in (0.0, 0.07, 0.14, 0.3, 0.4, 0.5, 0.6, 0.7, 0.9, 0.95)
    }
    # targets 0, 1 (as near to 0 as to 2: the lower), 2, 4, 6, 7, 8, 10, 13 (tie again), 13
    expected = [0, 0, 2, 2, 7, 7, 7, 12, 12, 12]
    assert dict(zip(totals, expected)) == totals
    first, second = global_masks(kernels, 0.5, "channel")
    np.testing.assert_array_equal(first, np.ones((2, 2)) * [0, 1])
    np.testing.assert_array_equal(second, np.ones((5, 2)) * [0, 1])


@pytest.mark.parametrize("sparsity, kept", [(0.0, 4), (0.25, 3), (0.37, 3), (0.38, 2), (0.5, 2)])
def test_global_channels_of_equal_size(sparsity, kept):
    kernels = [np.ones((5, 2)) * [1, 4], np.ones((5, 2)) * [2, 3]]
    for first, second in (kernels, kernels[::-1]):
        masks = global_masks([first, second], sparsity, "channel")
        assert sum(map(np.sum, masks)) == 5 * kept
    # 0.125 * 20 is 2.5: as near to no channel as to one of 5, and the lower is taken
    assert sum(map(np.sum, global_masks(kernels, 0.125, "channel"))) == 20


def test_global_blocks():
    kernels = [np.array([[1, 1, 8, 8]]).T, np.array([[2, 2, 3, 3, 9]]).T]
    first, second = global_masks(kernels, 0.45, "1x2")
    np.testing.assert_array_equal(first.ravel(), [0, 0, 1, 1])
    np.testing.assert_array_equal(second.ravel(), [0, 0, 1, 1, 1])


def test_global_equals_uniform_for_one_kernel():
    scores = scores_of((20, 30)) // 7  # with ties
    np.testing.assert_array_equal(global_masks([scores], 0.77)[0], mask(scores, 0.77))
