"""What is sparse in a model, what was skipped, and why."""

import warnings
from typing import NamedTuple

import keras
import numpy as np
from keras import ops

from tf_sparsity.convert import incomplete
from tf_sparsity.kernels import find
from tf_sparsity.layers import SparseLayer
from tf_sparsity.method import STEP, group_by_method
from tf_sparsity.update import find_sparse_optimizer


class Row(NamedTuple):
    """One kernel. `target` is None where nothing is asked of this kernel alone, `skipped` the
    reason why it is dense, None for a sparsified kernel."""

    name: str
    shape: tuple
    size: int
    zeros: int
    sparsity: float
    target: float | None
    skipped: str | None


class SparsityReport:
    """Rows of all kernels of a model; `str()` is a table.

    Attributes:
      rows: list of Row.
      sparsity: fraction of zeros over the sparsified kernels; over all kernels of a plain model.
      step: optimizer updates over the model's life.
    """

    def __init__(self, rows, step):
        self.rows, self.step = rows, step

    @property
    def sparsity(self):
        rows = [r for r in self.rows if r.skipped is None] or self.rows
        size = sum(r.size for r in rows)
        return sum(r.zeros for r in rows) / size if size else 0.0

    def to_dict(self):
        return {"sparsity": self.sparsity, "step": self.step,
                "rows": [row._asdict() for row in self.rows]}

    def __str__(self):
        return "\n".join(f"{r.name} {r.shape} {r.size} {r.zeros} {r.sparsity:.4f} {r.target} "
                         f"{r.skipped or ''}" for r in self.rows)


def report(model):
    """Counts the zeros of every kernel of a model, sparsified or plain."""
    if not isinstance(model, keras.Model):
        raise TypeError(f"ts.report expects a keras.Model. Received: {model!r}")
    result = measure(model)
    if result.step > 0:
        for message in incomplete(model):
            warnings.warn(message, stacklevel=2)
    return result


def measure(model):
    """`report` without its warnings."""
    optimizer = find_sparse_optimizer(model.optimizer)
    masked = {} if optimizer is None else {id(s.theta): s for s in optimizer.slots}
    steps = [l.read_clock()[STEP] for l in model._flatten_layers()
             if isinstance(l, SparseLayer) and l.built]
    if masked:
        steps.append(optimizer.read_clock()[STEP])
    step = max(steps, default=0)
    found = find(model)
    targets = {}
    pairs = [(f.method, f.kernel) for f in found if f.method is not None]
    pairs += [(optimizer.method, slot.kernel) for slot in masked.values()]
    for method, kernels in group_by_method(pairs):
        values = method.target(kernels, step) or [None] * len(kernels)
        targets.update({k.path: v for k, v in zip(kernels, values)})
    rows = []
    for f in found:
        if f.method is not None:
            keep = f.method.keep(ops.convert_to_tensor(f.variable), f.slot.state)
            skipped = None
        elif id(f.variable) in masked:
            keep, skipped = masked[id(f.variable)].state["mask"], None
        else:
            keep, skipped = f.variable, f.skipped or "not selected"
        keep = ops.convert_to_numpy(keep)
        zeros = int(keep.size - np.count_nonzero(keep))
        rows.append(Row(f.kernel.path, f.kernel.shape, keep.size, zeros, zeros / keep.size,
                        targets.get(f.kernel.path), skipped))
    return SparsityReport(rows, step)
