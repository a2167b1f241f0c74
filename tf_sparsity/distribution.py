"""How a global target is shared out: one sparsity per kernel.

"uniform": the same everywhere. "erk": Erdős-Rényi-Kernel, small kernels stay denser. A map
`{regex: sparsity}`: by kernel path. "global": one ranking over all weights, which has no
sparsities per kernel and is done by `masks.global_masks`.
"""

import math
import numbers
import re
from fractions import Fraction


def validate(distribution):
    """Raises unless `distribution` is "uniform", "erk", "global" or a map {regex: sparsity}.

    Raises:
        TypeError: if it is neither a string nor a dict, or a value of the dict is not a number.
        ValueError: for an unknown name, an empty map, a bad regular expression, a value not in
            [0, 1).
    """
    if isinstance(distribution, str):
        if distribution not in ("uniform", "erk", "global"):
            raise ValueError(
                f"Unknown distribution {distribution!r}. Use 'uniform', 'erk', 'global' or a map "
                "{regex: sparsity}."
            )
        return
    if not isinstance(distribution, dict):
        raise TypeError(
            "distribution must be 'uniform', 'erk', 'global' or a map {regex: sparsity}, "
            f"got {distribution!r}."
        )
    if not distribution:
        raise ValueError("The sparsity map is empty. Give at least one {regex: sparsity}.")
    for pattern, sparsity in distribution.items():
        if not isinstance(pattern, str):
            raise TypeError(f"A key of the sparsity map must be a regex string, got {pattern!r}.")
        try:
            re.compile(pattern)
        except re.error as error:
            raise ValueError(
                f"Key {pattern!r} of the sparsity map is not a regular expression: {error}."
            ) from None
        if isinstance(sparsity, bool) or not isinstance(sparsity, numbers.Real):
            raise TypeError(f"The sparsity for {pattern!r} must be a number, got {sparsity!r}.")
        if not 0.0 <= sparsity < 1.0:
            raise ValueError(
                f"The sparsity for {pattern!r} must be a fraction of zeros in [0, 1), "
                f"got {sparsity}."
            )


def erk_densities(shapes, sparsity):
    """Erdős-Rényi-Kernel densities of kernels that share a global sparsity.

    `density_l = min(1, eps * sum(shape_l) / prod(shape_l))`, with `eps` such that
    `sum_l density_l * n_l = (1 - sparsity) * sum_l n_l`, where `n_l = prod(shape_l)`.

    Args:
        shapes: Kernel shapes, each a tuple of positive ints.
        sparsity: Global fraction of zeros, in [0, 1).

    Returns:
        One density in (0, 1] per shape. They meet the budget exactly, before each kernel's number
        of zeros is rounded.

    Example:
        >>> [round(d, 6) for d in erk_densities([(784, 300), (300, 100), (100, 10)], 0.9)]
        [0.079568, 0.230189, 1.0]

    Reference:
        Evci et al. 2020, "Rigging the lottery", arXiv:1911.11134, section 3 (1), for the kernel
        form; Mocanu et al. 2018, arXiv:1707.04780, eq. (1), for Erdős-Rényi.

    Deviations: the budget is solved in real numbers; the authors' code floors each kernel's number
    of zeros inside it, which leaves the total a little too dense.
    """
    # Fractions: at sparsity 0 every density is exactly 1, and rounding makes no kernel dense.
    target = 1 - Fraction(str(sparsity))
    sizes = [math.prod(shape) for shape in shapes]
    dense = set()
    while True:
        # raw_l * n_l = sum(shape_l), hence eps * (sum of the others' sum(shape_l)) + (n_l of the
        # dense kernels) = target * n. What a kernel above 1 leaves goes to the others.
        budget = target * sum(sizes) - sum(sizes[i] for i in dense)
        eps = budget / sum(sum(shape) for i, shape in enumerate(shapes) if i not in dense)
        densities = [
            1 if i in dense else eps * sum(shape) / size
            for i, (shape, size) in enumerate(zip(shapes, sizes))
        ]
        above = {i for i, density in enumerate(densities) if density > 1}
        if not above:
            return [float(density) for density in densities]
        dense |= above


def sparsities(distribution, paths, shapes, sparsity, final_sparsity):
    """The sparsity of each kernel while the schedule stands at `sparsity`.

    In a map the first key that `re.search` finds in a path wins; its value is reached when the
    schedule reaches `final_sparsity`, and until then scaled alike: `value * sparsity /
    final_sparsity`. A kernel that no key matches follows the schedule itself.

    Args:
        distribution: "uniform", "erk" or a map {regex: sparsity}.
        paths: Kernel paths.
        shapes: Kernel shapes.
        sparsity: The schedule's value now, in [0, 1).
        final_sparsity: The schedule's final value, in [0, 1).

    Returns:
        One float in [0, 1) per kernel.

    Raises:
        ValueError: for "global", for a key that matches no path, and for a map with a schedule
            whose final sparsity is 0.

    Example:
        >>> sparsities({"a/": 0.4}, ["a/kernel", "b/kernel"], [(2, 2)] * 2, 0.45, 0.9)
        [0.2, 0.45]
    """
    if distribution == "uniform":
        return [sparsity] * len(paths)
    if distribution == "erk":
        return [1.0 - density for density in erk_densities(shapes, sparsity)]
    if distribution == "global":
        raise ValueError(
            "distribution='global' has no sparsity per kernel. Call masks.global_masks instead."
        )
    if final_sparsity == 0:
        raise ValueError(
            "A sparsity map needs a schedule with a final sparsity above 0, because its values are "
            "scaled by sparsity / final_sparsity."
        )
    for pattern in distribution:
        if not any(re.search(pattern, path) for path in paths):
            raise ValueError(
                f"Key {pattern!r} of the sparsity map matches no kernel. Kernels: "
                + ", ".join(paths)
            )
    progress = sparsity / final_sparsity  # exactly 1 at the end, so that the value is met exactly
    result = []
    for path in paths:
        values = (v for pattern, v in distribution.items() if re.search(pattern, path))
        value = next(values, None)
        result.append(sparsity if value is None else value * progress)
    return result
