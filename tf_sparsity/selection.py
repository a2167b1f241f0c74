"""Which kernels a method is applied to."""

import re
from collections.abc import Callable
from typing import NamedTuple

from tf_sparsity.method import Kernel


class Exclude(NamedTuple):
    """A selection by what it leaves out; made by `ts.exclude`."""

    patterns: tuple = ()
    first: bool = False
    last: bool = False


def exclude(*patterns, first=False, last=False):
    """Selects every kernel but those that a pattern matches, or those of the first/last layer.

    Args:
      *patterns: regular expressions, searched in the kernel's path (`block/dense/kernel`).
      first: leave out the first layer that has a kernel.
      last: leave out the last one.

    Returns:
      A value for `select=` of `ts.sparsify` and `ts.SparseOptimizer`.

    Raises:
      ValueError: for what is no regular expression; when used, for a pattern that matches no
        kernel.

    Example:

    ```python
    import tf_sparsity as ts
    select = ts.exclude("embedding", last=True)
    ```
    """
    _compile(patterns)
    return Exclude(tuple(patterns), first, last)


def choose(select, paths, layers):
    """The chosen ones among parallel lists of paths and layers, as a list of bool.

    Args:
      select: None (all), a regular expression or a list of them (any matches), a predicate on
        the layer, or `exclude(...)`.
      paths: path of each kernel.
      layers: layer of each kernel; None where it is not known.

    Raises:
      ValueError: for a pattern that matches no kernel, a predicate where a layer is not known,
        or a selection that is empty.
      TypeError: for any other `select`.
    """
    if select is None:
        chosen = [True] * len(paths)
    elif isinstance(select, Exclude):
        if select.first or select.last:
            _require_layers(layers, "names the first or last layer")
        drop = _matches(select.patterns, paths)
        first, last = (layers[0], layers[-1]) if layers else (None, None)
        chosen = [not d and not (select.first and layer is first)
                  and not (select.last and layer is last)
                  for d, layer in zip(drop, layers)]
    elif is_pattern(select):
        chosen = _matches([select] if isinstance(select, str) else select, paths)
    elif isinstance(select, Callable):
        _require_layers(layers, "is a predicate on layers")
        chosen = [bool(select(layer)) for layer in layers]
    else:
        raise TypeError("select is None, a regular expression, a list of them, a predicate "
                        f"layer -> bool, or ts.exclude(...). Received: select={select!r}")
    if not paths:
        raise ValueError("There is no kernel to choose from: the kernels of this model are "
                         "sparsified already, or do not exist before it is called on a batch.")
    if not any(chosen):
        raise ValueError(f"select={select!r} leaves no kernel to sparsify. The kernels are: "
                         f"{', '.join(paths) or 'none'}")
    return chosen


def _require_layers(layers, reason):
    if any(layer is None for layer in layers):
        raise ValueError(
            f"select {reason}, but the layers of these variables are not known. Use "
            "ts.callbacks.SparsityUpdate (or ts.update(model)), which binds them, or select by "
            "regular expression.")


def _matches(patterns, paths):
    patterns = _compile(patterns)
    for pattern in patterns:
        if not any(map(pattern.search, paths)):
            raise ValueError(f"The pattern {pattern.pattern!r} matches no kernel. The kernels "
                             f"are: {', '.join(paths) or 'none'}")
    return [any(pattern.search(path) for pattern in patterns) for path in paths]


def _compile(patterns):
    for pattern in patterns:
        try:
            re.compile(pattern)
        except (re.error, TypeError) as error:
            raise ValueError(f"{pattern!r} is no regular expression: {error}") from error
    return [re.compile(pattern) for pattern in patterns]


def is_pattern(select):
    """Is it a regular expression, or a list of them?"""
    return isinstance(select, str) or (isinstance(select, (list, tuple)) and bool(select)
                                       and all(isinstance(p, str) for p in select))


def is_kernel_like(variable):
    """Rank >= 2 and named like a kernel: not a bias, scale, statistic or PReLU slope."""
    return len(variable.shape) >= 2 and ("kernel" in variable.name
                                         or "embeddings" in variable.name)


def guess_kernel(variable, path):
    """The Kernel of a variable whose layer is not one of Keras': axes by rank."""
    axes = {2: ("in", "out"), 3: ("kw", "in", "out"), 4: ("kh", "kw", "in", "out"),
            5: ("kd", "kh", "kw", "in", "out")}.get(len(variable.shape))
    return Kernel(path, tuple(variable.shape), axes or ("free",) * len(variable.shape))
