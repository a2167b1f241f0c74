"""Scores and a sparsity -> masks, in NumPy on the host.

A mask is a boolean array with the shape of its kernel, True where a weight is kept. The lowest
scores go first. Counts are exact: the number of zeros is computed in integers (`count_zeros`), and
among equal scores the lower index is kept.

Patterns see a kernel through the roles of its axes, one string per axis: the text before ":" is
"in" (input units), "out" (output units) or anything else (kh, kw, vocab, batch, ...: a free axis,
along which blocks and N:M groups never run). Several axes of one side are flattened in order, so
that attention's output kernel ("in:head", "in", "out") has head * dim inputs.
"""

import math
import re
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

SAMPLE = 2**16  # scores from which the place of a threshold is estimated


def count_zeros(size, sparsity):
    """Number of zeros among `size` weights: `size * sparsity`, rounded half to even.

    Computed exactly on the decimal value that Python prints for the float, so that 0.35 of 10 is
    3.5 and not 3.4999999999999996.

    Args:
        size: Number of weights (or of groups), >= 0.
        sparsity: Fraction of zeros, in [0, 1).

    Raises:
        ValueError: if `sparsity` is not in [0, 1).

    Example:
        >>> [count_zeros(10, s) for s in (0.15, 0.25, 0.35, 0.85)]
        [2, 2, 4, 8]
    """
    if not 0 <= sparsity < 1:
        raise ValueError(f"sparsity must be a fraction of zeros in [0, 1), got {sparsity}.")
    return round(size * Fraction(str(sparsity)))


def canonical(array, axes):
    """`array` as (free, out, in): the axes of each side flattened, in order."""
    return array.transpose(_order(axes)).reshape(
        [
            int(np.prod([n for n, a in zip(array.shape, axes) if _side(a) == side], dtype=int))
            for side in ("free", "out", "in")
        ]
    )


def restore(view, shape, axes):
    """The inverse of `canonical`: an array of `shape` from its (free, out, in) view."""
    order = _order(axes)
    return view.reshape([shape[i] for i in order]).transpose(np.argsort(order))


def _side(axis):
    side = axis.partition(":")[0]
    return side if side in ("in", "out") else "free"


def _order(axes):
    return [i for side in ("free", "out", "in") for i, a in enumerate(axes) if _side(a) == side]


# ---- patterns: which weights go together --------------------------------------------------------


class Pattern:
    """Base class. All but N:M make groups that live and die as one, by `pool` and `spread`:

    `pool(array, axes)` gives the mean of `array` over each group, flat, and the number of weights
    of each group; `spread(flags, shape, axes)` puts each group's flag on all its weights.
    """

    def unsupported(self, axes):
        """Why kernels with these axes cannot have this pattern, or None."""
        return None

    def validate(self, final_sparsity, distribution):
        """Raises ValueError if the pattern cannot meet this final sparsity and distribution."""


@dataclass(frozen=True)
class Unstructured(Pattern):
    """Every weight by itself; among equal scores the kernel's own C order decides."""

    def pool(self, array, axes):
        return array.ravel(), np.ones(1, int)

    def spread(self, flags, shape, axes):
        return flags.reshape(shape)


@dataclass(frozen=True)
class Block(Pattern):
    """`rows` output units x `cols` consecutive inputs; blocks at the edges are smaller.

    Groups are in the order of the canonical view (free, out, in).
    """

    rows: int
    cols: int

    def __str__(self):
        return f"{self.rows}x{self.cols}"

    def unsupported(self, axes):
        if self.rows > 1 and _missing("out", self, axes):
            return _missing("out", self, axes)
        return _missing("in", self, axes) if self.cols > 1 else None

    def pool(self, array, axes):
        view = canonical(array, axes)
        _, n_out, n_in = view.shape
        rows, cols = np.arange(0, n_out, self.rows), np.arange(0, n_in, self.cols)
        sums = np.add.reduceat(np.add.reduceat(view, cols, axis=2), rows, axis=1)
        sizes = np.outer(np.diff(rows, append=n_out), np.diff(cols, append=n_in))
        sizes = np.broadcast_to(sizes, sums.shape)
        return (sums / sizes.astype(sums.dtype)).ravel(), sizes.ravel()

    def spread(self, flags, shape, axes):
        free, n_out, n_in = canonical(np.broadcast_to(False, shape), axes).shape
        flags = flags.reshape(free, -(-n_out // self.rows), -(-n_in // self.cols))
        flags = flags.repeat(self.rows, axis=1)[:, :n_out].repeat(self.cols, axis=2)[:, :, :n_in]
        return restore(flags, shape, axes)


@dataclass(frozen=True)
class Channel(Pattern):
    """A whole output unit: all weights with the same index on the out axes."""

    def __str__(self):
        return "channel"

    def unsupported(self, axes):
        return _missing("out", self, axes)

    def pool(self, array, axes):
        view = canonical(array, axes)
        return view.mean(axis=(0, 2)), np.full(view.shape[1], view.shape[0] * view.shape[2])

    def spread(self, flags, shape, axes):
        view = canonical(np.broadcast_to(False, shape), axes)
        return restore(np.broadcast_to(flags[:, None], view.shape), shape, axes)


@dataclass(frozen=True)
class NM(Pattern):
    """At most `n` non-zeros in every `m` consecutive inputs; an incomplete last group too.

    NVIDIA's 2:4 is NM(2, 4). TFMOT's `sparsity_m_by_n` counts the zeros instead.
    """

    n: int
    m: int

    def __str__(self):
        return f"{self.n}:{self.m}"

    @property
    def sparsity(self):
        """The final sparsity that this pattern needs: 1 - n/m."""
        return 1 - self.n / self.m

    def unsupported(self, axes):
        return _missing("in", self, axes)

    def validate(self, final_sparsity, distribution):
        if distribution != "uniform":
            raise ValueError(
                f"Pattern {self} fixes the sparsity of every kernel, got distribution="
                f"{distribution!r}. Use distribution='uniform', and select= to leave kernels dense."
            )
        if abs(final_sparsity - self.sparsity) > 1e-9:
            raise ValueError(
                f"Pattern {self} needs a schedule with a final sparsity of 1 - {self.n}/{self.m} = "
                f"{self.sparsity:.6g}, got {final_sparsity}."
            )


def parse(text):
    """The pattern that `text` names.

    Args:
        text: None: single weights. "N:M": keep N of every M consecutive inputs. "RxC": blocks of R
            output units x C consecutive inputs. "channel": whole output units.

    Raises:
        ValueError: for anything else.

    Example:
        >>> parse("2:4"), parse("1x16")
        (NM(n=2, m=4), Block(rows=1, cols=16))
    """
    if text is None:
        return Unstructured()
    if text == "channel":
        return Channel()
    match = re.fullmatch(r"(\d+)([:x])(\d+)", text) if isinstance(text, str) else None
    first, kind, second = match.groups() if match else (0, "", 0)
    first, second = int(first), int(second)
    if kind == ":" and 1 <= first < second:
        return NM(first, second)
    if kind == "x" and first >= 1 and second >= 1:
        return Block(first, second)
    raise ValueError(
        f"Unknown pattern {text!r}. Use None (single weights), 'N:M' with 1 <= N < M (keep N of "
        "every M inputs), 'RxC' with R, C >= 1 (R output units x C inputs) or 'channel'."
    )


def _missing(side, pattern, axes):
    if side in map(_side, axes):
        return None
    return f"pattern {pattern} needs an {side}put axis, this kernel has axes ({', '.join(axes)})"


# ---- masks --------------------------------------------------------------------------------------


def kernel_mask(scores, sparsity, pattern, axes, previous=None, min_keep=1):
    """The mask of one kernel.

    Of `n` groups exactly `count_zeros(n, sparsity)` are zero: those with the lowest mean score;
    among equal ones the lower index is kept.

    N:M reaches `sparsity` step by step: a fraction `sparsity / (1 - N/M)` of the groups (to 1e-9,
    so that 1 - N/M in floats is all of them) is cut to their N best inputs, the groups that lose
    the lowest mean score first. A last group of at most N inputs has nothing to lose and is not
    counted.

    Args:
        scores: Array, the kernel's shape. Low scores are pruned.
        sparsity: Fraction of zeros, in [0, 1).
        pattern: What `parse` returns.
        axes: Roles of the kernel's axes.
        previous: The mask so far: what is zero stays zero and the number of zeros never falls.
            None: free choice.
        min_keep: Number of weights that always remain, >= 0. Of groups as many remain as hold
            `min_keep` weights even if they are the smallest. (N:M keeps N of a group anyway.)

    Returns:
        Boolean array of the kernel's shape, True where a weight is kept.

    Raises:
        ValueError: if `sparsity` is not in [0, 1) or above the 1 - N/M of the pattern, if scores
            are NaN, and if the pattern does not suit the axes.

    Example:
        >>> kernel_mask(np.array([[1.0, 4.0], [3.0, 2.0]]), 0.5, parse(None), ("in", "out"))
        array([[False,  True],
               [ True, False]])

    Reference:
        Zhu & Gupta 2017, arXiv:1710.01878, section 3 (sort by magnitude, mask the smallest).

    Deviations: exact counts under ties, where TFMOT keeps all weights equal to the threshold.
    """
    scores = _checked(scores, pattern, axes)
    if isinstance(pattern, NM):
        return _nm_mask(scores, sparsity, pattern, axes, previous)
    groups, sizes = pattern.pool(scores, axes)
    alive = _alive(previous, pattern, axes, groups)
    n_alive = np.count_nonzero(alive)
    count = count_zeros(groups.size, sparsity) - (groups.size - n_alive)
    count = min(count, n_alive - _needed(sizes, min_keep))
    (gone,) = _lowest([groups], [alive], count)
    return _mask(alive & ~gone, pattern, scores.shape, axes, previous)


def global_masks(scores, sparsity, pattern, axes, previous=None, min_keep=1):
    """The masks of several kernels from one ranking over all of them.

    Single weights: exactly `count_zeros(n, sparsity)` of all n weights are zero. Groups: they go in
    order of their mean score, and the total number of zero weights is the one nearest to that
    (within half a group; the lower of two equally near ones). Among equal scores the earlier kernel
    and the lower index is kept. What a kernel keeps because of `min_keep`, its best, is taken from
    the others, as far as they have it.

    Args:
        scores: List of arrays, see `kernel_mask`.
        sparsity: Fraction of zeros over all kernels, in [0, 1).
        pattern: What `parse` returns, except N:M.
        axes: List of axis roles, one tuple per kernel.
        previous: List of masks or None, see `kernel_mask`.
        min_keep: Number of weights that always remain in each kernel, see `kernel_mask`.

    Returns:
        List of boolean masks.

    Raises:
        ValueError: as `kernel_mask`, and for N:M, whose sparsity is fixed in every kernel.

    Example:
        >>> global_masks([np.array([[1.0, 4.0]]), np.array([[3.0, 2.0]])], 0.5, parse(None),
        ...              [("in", "out")] * 2)
        [array([[False,  True]]), array([[ True, False]])]
    """
    if isinstance(pattern, NM):
        raise ValueError(
            f"Pattern {pattern} fixes the sparsity of every kernel, so there is no global ranking. "
            "Use distribution='uniform'."
        )
    previous = previous or [None] * len(scores)
    scores = [_checked(s, pattern, a) for s, a in zip(scores, axes)]
    groups, sizes = zip(*(pattern.pool(s, a) for s, a in zip(scores, axes)))
    alive = [_alive(p, pattern, a, g) for p, a, g in zip(previous, axes, groups)]
    budget = count_zeros(sum(s.size for s in scores), sparsity)
    budget -= sum(np.count_nonzero(p == 0) for p in previous if p is not None)
    gone = _lowest_of_all(groups, sizes, alive, budget, min_keep)
    return [
        _mask(a & ~g, pattern, s.shape, x, p)
        for a, g, s, x, p in zip(alive, gone, scores, axes, previous)
    ]


def rank(importances, sizes, sparsity, min_keep=1):
    """Which groups of several kernels are kept, from one ranking over all of them.

    As `global_masks` where the caller has made the groups: the total number of zero weights is the
    one nearest to `count_zeros(n, sparsity)`, equal importances are decided by index.

    Args:
        importances: List of arrays, one number per group; the lowest go.
        sizes: Weights in a group, one integer per kernel.
        sparsity: Fraction of zero weights over all kernels, in [0, 1).
        min_keep: Number of weights that always remain in each kernel.

    Returns:
        List of boolean arrays, shaped like the importances.

    Example:
        >>> rank([np.array([1.0, 5.0]), np.array([2.0, 3.0, 4.0])], [3, 1], 0.5)
        [array([False,  True]), array([False,  True,  True])]
    """
    flat = [v.ravel() for v in importances]
    alive = [np.ones(v.shape, bool) for v in flat]
    groups = [np.broadcast_to(n, v.shape) for n, v in zip(sizes, flat)]
    budget = count_zeros(sum(n * v.size for n, v in zip(sizes, flat)), sparsity)
    gone = _lowest_of_all(flat, groups, alive, budget, min_keep)
    return [~g.reshape(v.shape) for g, v in zip(gone, importances)]


def quantiles(importances, sizes, fractions):
    """The importances below which these fractions of all weights lie; arguments as for `rank`.

    Example:
        >>> quantiles([np.array([1.0, 5.0]), np.array([2.0, 3.0, 4.0, 6.0])], [1, 1], [0.5, 1])
        [3.0, 6.0]
    """
    flat = np.concatenate([v.ravel() for v in importances])
    if len(set(sizes)) == 1:
        at = [max(math.ceil(fraction * flat.size) - 1, 0) for fraction in fractions]
        return np.partition(flat, at)[at].tolist()
    weights = np.concatenate([np.full(v.size, n) for n, v in zip(sizes, importances)])
    order = np.argsort(flat)
    below = np.cumsum(weights[order])
    return flat[order[np.searchsorted(below, np.multiply(fractions, below[-1]))]].tolist()


def _lowest_of_all(groups, sizes, alive, budget, min_keep):
    """The lowest groups among those alive, so many that `budget` weights go."""
    n_alive = [np.count_nonzero(a) for a in alive]
    needed = [_needed(s, min_keep) for s in sizes]
    candidates = list(alive)
    while True:
        if all(s[0] == 1 and (s.size == 1 or (s == 1).all()) for s in sizes):
            count = budget
        else:
            count = _nearest(groups, candidates, sizes, budget)
        gone = _lowest(groups, candidates, count)
        starved = [
            i
            for i, g in enumerate(gone)
            if n_alive[i] - np.count_nonzero(g) < min(needed[i], n_alive[i])
        ]
        if not starved:
            return gone
        for i in starved:  # its best groups stand aside, and the choice is made again
            (candidates[i],) = _lowest([groups[i]], [alive[i]], n_alive[i] - needed[i])


def _checked(scores, pattern, axes):
    scores = np.asarray(scores)
    scores = scores.astype(np.result_type(scores, np.float32), copy=False)
    if len(axes) != scores.ndim:
        raise ValueError(
            f"Expected one axis role per kernel axis, got {axes} for shape {scores.shape}."
        )
    reason = pattern.unsupported(axes)
    if reason:
        raise ValueError(f"{reason[0].upper()}{reason[1:]}. Use pattern=None or do not select it.")
    if np.isnan(scores.min(initial=np.inf)):
        raise ValueError(
            f"scores contain NaN ({np.isnan(scores).sum()} of {scores.size}); weights are NaN: "
            "check the learning rate or the data, and prune a model whose loss is finite."
        )
    return scores


def _alive(previous, pattern, axes, groups):
    if previous is None:
        return np.ones(groups.shape, bool)
    return pattern.pool(np.asarray(previous, np.float32), axes)[0] > 0


def _needed(sizes, min_keep):
    return -(-min_keep // int(sizes.min()))


def _mask(keep, pattern, shape, axes, previous):
    mask = np.ascontiguousarray(pattern.spread(keep, shape, axes))
    if previous is not None and not isinstance(pattern, Unstructured):
        mask = mask & (np.asarray(previous) > 0)  # a group that had some zeros keeps them
    return mask


def _lowest(scores, candidates, count):
    """Marks the `count` lowest scores among the candidates, the last indices first among equals."""
    n_candidates = sum(map(np.count_nonzero, candidates))
    count = min(count, n_candidates)
    if count <= 0:
        return [np.zeros(s.shape, bool) for s in scores]
    threshold = _threshold(scores, candidates, count, n_candidates)
    gone = [(s <= threshold) & c for s, c in zip(scores, candidates)]
    excess = sum(map(np.count_nonzero, gone)) - count
    for s, c, g in zip(scores, candidates, gone):
        if excess:
            first = np.flatnonzero((s == threshold) & c)[:excess]
            g[first] = False
            excess -= first.size
    return gone


def _threshold(scores, candidates, count, n_candidates):
    """The `count`-th lowest score of the candidates, exactly.

    Only the few candidates between two scores of a sample, which enclose it with near certainty,
    are partitioned. Where they do not (scores that repeat along the sample's stride), all are.
    """
    low, high = -np.inf, np.inf
    step = sum(s.size for s in scores) // SAMPLE | 1
    if step > 1:
        sample = np.concatenate([s[::step][c[::step]] for s, c in zip(scores, candidates)])
        sample.sort()
        at = sample.size * count / n_candidates
        margin = 2 * sample.size**0.5  # at least four standard deviations of the sample's quantile
        low = sample[int(at - margin)] if at > margin else low
        high = sample[int(at + margin)] if at + margin < sample.size else high
    while True:
        below = [(s < low) & c for s, c in zip(scores, candidates)]
        n_below = sum(map(np.count_nonzero, below))
        enclosed = np.concatenate(
            [np.compress((s <= high) & c ^ b, s) for s, c, b in zip(scores, candidates, below)]
        )
        if n_below < count <= n_below + enclosed.size:
            break
        low, high = -np.inf, np.inf
    enclosed.partition(count - n_below - 1)
    return enclosed[count - n_below - 1]


def _nearest(scores, candidates, sizes, budget):
    """How many of the lowest groups to take so that their weights come nearest to `budget`."""
    size = sizes[0][0]
    if all((n == size).all() for n in sizes):  # no need to sort
        return -((size - 2 * budget) // (2 * size))  # budget / size, halves rounded down
    pool = np.concatenate([s[c] for s, c in zip(scores, candidates)])
    weights = np.concatenate([n[c] for n, c in zip(sizes, candidates)])
    ascending = np.argsort(pool[::-1], kind="stable")  # reversed: last indices first among equals
    totals = np.concatenate([[0], np.cumsum(weights[::-1][ascending])])
    return np.abs(totals - budget).argmin()


def _nm_mask(scores, sparsity, pattern, axes, previous):
    n, m = pattern.n, pattern.m
    share = Fraction(str(sparsity)) / (1 - Fraction(n, m))
    if not 0 <= share <= 1 + 1e-9:
        raise ValueError(
            f"Pattern {pattern} needs a sparsity in [0, {pattern.sparsity:.6g}], got {sparsity}. "
            f"Set the schedule's final sparsity to {pattern.sparsity:.6g}."
        )
    previous = np.ones(scores.shape, bool) if previous is None else previous > 0
    x, alive = (_consecutive(array, m, axes) for array in (scores, previous))
    # rank = how many of its group are better; what is pruned (and the padding) comes last.
    ranked = np.where(alive, x, -np.inf)
    rank = np.zeros(x.shape, np.min_scalar_type(m))
    for j in range(m):
        for i in range(j):
            first = ranked[i] >= ranked[j]
            rank[j] += first
            rank[i] += ~first
    drop = alive & (rank >= n)
    n_alive = alive.sum(axis=0)
    loss = np.where(drop, x, 0).sum(axis=0) / np.maximum(n_alive - n, 1)
    free, n_out, n_in = canonical(scores, axes).shape
    n_groups = free * n_out * (n_in // m + (n_in % m > n))
    uncut = n_alive > n
    count = n_groups if share > 1 - 1e-9 else round(n_groups * share)
    (gone,) = _lowest([loss], [uncut], count - (n_groups - np.count_nonzero(uncut)))
    keep = (alive & ~(drop & gone)).T.reshape(free, n_out, -1)[:, :, :n_in]
    return np.ascontiguousarray(restore(keep, scores.shape, axes), dtype=bool)


def _consecutive(array, m, axes):
    """(m, groups): each column is `m` consecutive inputs, the last ones padded with zeros."""
    view = canonical(array, axes)
    padding = -view.shape[2] % m
    if padding:
        view = np.pad(view, ((0, 0), (0, 0), (0, padding)))
    return np.ascontiguousarray(view.reshape(-1, m).T)
