"""What is sparse in a model, what was skipped and why, and what the zeros could save."""

import inspect
import math
import textwrap
import warnings
from collections.abc import Mapping
from typing import Any, NamedTuple

import keras
import numpy as np
from keras import ops
from keras.src.utils.dtype_utils import dtype_size

from tf_sparsity.convert import incomplete
from tf_sparsity.kernels import check_is_model, find, is_graph
from tf_sparsity.layers import REPLACEMENTS, SPARSE_CLASSES, SparseLayer
from tf_sparsity.method import STEP, Kernel, Method, group_by_method
from tf_sparsity.optimizer import find_sparse_optimizer

ADDITIVE = ("size", "zeros", "flops", "flops_effective", "bytes", "bytes_sparse")


class Row(NamedTuple):
    """One kernel.

    Attributes:
      name: path of the kernel, `block/dense/kernel`.
      shape: its shape.
      size: number of weights.
      zeros: weights that a layer's mask prunes; those equal to zero in any other kernel.
      sparsity: zeros / size, in [0, 1].
      target: the sparsity asked for at the model's step; None where nothing is asked of this
        kernel alone (`distribution="global"`).
      skipped: why the kernel is dense; None for a sparsified one.
      flops: floating-point operations of one example through this kernel, two for each
        multiply-add, summed over all calls of a shared layer. None where the graph does not
        tell: dynamic shapes, subclassed models, custom and quantized layers.
      flops_effective: the same without the multiply-adds of zero weights.
      bytes: size at the variable's dtype.
      bytes_sparse: the non-zeros at that dtype and a bitmap of one bit per weight.
    """

    name: str
    shape: tuple
    size: int
    zeros: int
    sparsity: float
    target: float | None
    skipped: str | None
    flops: int | None
    flops_effective: int | None
    bytes: int
    bytes_sparse: int


class SparsityReport:
    """Rows of all kernels of a model; `str()` is a table.

    Attributes:
      rows: list of Row.
      step: optimizer updates over the model's life.
      target: the global sparsity asked for at that step, None where nothing is asked.
      natural: the sparsity that learned methods have come to by themselves, where `target` is
        met by rank (`reach="rank"`); None where the two are one.
    """

    def __init__(self, rows, step, target=None, natural=None):
        self.rows, self.step, self.target, self.natural = rows, step, target, natural

    @property
    def sparsity(self):
        """Fraction of zeros over the sparsified kernels; over all kernels of a plain model."""
        size, zeros = (self._total(field, self._counted()) for field in ("size", "zeros"))
        return zeros / size if size else 0.0

    def total(self, field):
        """Sum over all kernels, dense ones included, of "size", "zeros", "flops",
        "flops_effective", "bytes" or "bytes_sparse"; None if it is unknown for one of them."""
        return self._total(field, self.rows)

    def to_dict(self):
        """The report in types that `json.dumps` takes."""
        return {"sparsity": self.sparsity, "target": self.target, "natural": self.natural,
                "step": self.step,
                "total": {field: self.total(field) for field in ADDITIVE},
                "rows": [{**row._asdict(), "shape": list(row.shape)} for row in self.rows]}

    def _counted(self):
        return [r for r in self.rows if r.skipped is None] or self.rows

    @staticmethod
    def _total(field, rows):
        values = [getattr(row, field) for row in rows]
        return None if None in values else sum(values)

    def __str__(self):
        sparsified = [r for r in self.rows if r.skipped is None]
        lines = [("kernel", "shape", "parameters", "zeros", "sparsity", "target", "FLOPs",
                  "effective", "bytes", "sparse")]
        lines += [_cells(r.name, "x".join(map(str, r.shape)), *r[2:6], *r[7:]) for r in self.rows]
        if 0 < len(sparsified) < len(self.rows):
            lines.append(self._total_cells("sparsified kernels", sparsified, self.target))
        target = self.target if len(sparsified) == len(self.rows) else None
        lines.append(self._total_cells("all kernels", self.rows, target))
        widths = [max(map(len, column)) for column in zip(*lines)]
        table = ["  ".join(cell.ljust(width) if i < 2 else cell.rjust(width)
                           for i, (cell, width) in enumerate(zip(line, widths))).rstrip()
                 for line in lines]
        rule = "-" * max(map(len, table))
        table = [table[0], rule, *table[1:1 + len(self.rows)], rule, *table[1 + len(self.rows):]]
        reasons: dict = {}
        for row in self.rows:
            if row.skipped is not None:
                reasons.setdefault(row.skipped, []).append(row.name)
        table += [textwrap.fill(f"dense: {', '.join(names)} ({why})", 118,
                                subsequent_indent="  ", break_long_words=False)
                  for why, names in reasons.items()]
        title = f"Sparsity {self.sparsity:.4f} at step {self.step:,}"
        if self.natural is not None:
            title += f" (requested {self.target:.4f}, natural {self.natural:.4f})"
        return "\n".join([title, *table])

    def _total_cells(self, label, rows, target):
        size, zeros, *rest = (self._total(field, rows) for field in ADDITIVE)
        return _cells(label, "", size, zeros, zeros / size if size else 0.0, target, *rest)


def _cells(name, shape, size, zeros, sparsity, target, flops, effective, dense, sparse):
    return (name, shape, f"{size:,}", f"{zeros:,}", f"{sparsity:.4f}",
            "-" if target is None else f"{target:.4f}",
            *(_short(n) for n in (flops, effective, dense, sparse)))


def _short(number):
    """12,345,678 -> 12.3M, so that a row fits into a terminal; `to_dict` has the integers."""
    if number is None:
        return "?"
    for power, unit in ((12, "T"), (9, "G"), (6, "M"), (3, "k")):
        if number >= 10 ** max(power, 4):
            return f"{number / 10 ** power:,.1f}{unit}"
    return f"{number:,}"


def report(model):
    """Counts the zeros of every kernel of a model, and what they could save.

    Zeros are those of the mask in sparse layers, and of the stored arrays elsewhere: what
    `ts.strip(model)`'s arrays hold.

    Args:
      model: a built `keras.Model`: sparsified, compiled with `ts.SparseOptimizer`, or plain;
        subclassed models included (FLOPs are then unknown).

    Returns:
      SparsityReport. Print it, or read `.sparsity`, `.rows`, `.to_dict()`.

    Raises:
      TypeError: if `model` is no Keras 3 model.
      ValueError: if it is not built.

    Warns:
      UserWarning: if a schedule is not complete ("schedule at step s of e").

    Example:

    ```python
    import keras
    import tf_sparsity as ts
    model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(4)])
    model = ts.sparsify(model, ts.MagnitudePruning(ts.ConstantSparsity(0.75, 0)))
    ts.update(model)
    row, = ts.report(model).rows
    assert (row.zeros, row.flops, row.flops_effective) == (24, 64, 16)
    assert (row.bytes, row.bytes_sparse) == (128, 8 * 4 + 4)
    print(ts.report(model))
    ```
    """
    _check(model)
    result = measure(model)
    if result.step > 0:
        for message in incomplete(model):
            warnings.warn(message, stacklevel=2)
    return result


def measure(model):
    """`report` without its checks and warnings."""
    entries, step, flops = entries_of(model), stored_step(model), _flops_per_weight(model)
    asked = targets(entries, step)
    rows = []
    for e in entries:
        keep = kept(e)
        size, nonzeros = keep.size, int(np.count_nonzero(keep))
        per_weight = None if e.quantized else flops(e)
        bits = dtype_size(keras.backend.standardize_dtype(e.variable.dtype))
        rows.append(Row(
            e.kernel.path, tuple(e.kernel.shape), size, size - nonzeros,
            (size - nonzeros) / size, asked.get(id(e.variable)), e.skipped,
            None if per_weight is None else per_weight * size,
            None if per_weight is None else per_weight * nonzeros,
            -(-size * bits // 8), -(-nonzeros * bits // 8) + -(-size // 8)))
    return SparsityReport(rows, step, global_target(entries, step), natural_sparsity(entries))


def natural_sparsity(entries):
    """The sparsity over the sparsified kernels without the ranks asked for; None: no such thing."""
    entries = [e for e in entries if e.method is not None]
    if not any(e.method.ranked for e in entries):
        return None
    keeps = [ops.convert_to_numpy(e.method.natural(ops.convert_to_tensor(e.variable), e.state))
             if e.behind_mask else kept(e) for e in entries]
    return float(1 - sum(map(np.count_nonzero, keeps)) / sum(k.size for k in keeps))


def sparsity(model):
    """`report(model).sparsity`, for the callbacks: counts, and nothing else."""
    size = zeros = 0
    for keep in map(kept, counted(entries_of(model))):
        size += keep.size
        zeros += keep.size - int(np.count_nonzero(keep))
    return zeros / size if size else 0.0


# ---- the kernels of a model, whichever host has them


class Entry(NamedTuple):
    """One kernel with the method that makes it sparse (None: it is dense) and its state."""

    kernel: Kernel
    variable: Any
    method: Method | None
    state: Mapping[str, Any]
    skipped: str | None
    layer: Any
    name: str
    quantized: bool
    behind_mask: bool = False  # layers keep theta behind the mask; optimizers store the weight


def entries_of(model):
    """Every kernel of a model, in the order of its layers."""
    optimizer = find_sparse_optimizer(model)
    masked = {} if optimizer is None else {id(s.theta): s for s in optimizer.slots}
    found = find(model)
    methods = {f.method for f in found if f.method is not None}
    if masked:
        methods.add(optimizer.method)
    entries = []
    for f in found:
        quantized = f.owner.quantization_mode is not None
        slot = masked.pop(id(f.variable), None)
        if f.method is not None:
            entries.append(Entry(f.kernel, f.variable, f.method, f.slot.state, None, f.layer,
                                 f.name, quantized, behind_mask=True))
        elif slot is not None:
            entries.append(Entry(f.kernel, f.variable, optimizer.method, slot.state, None,
                                 f.layer, f.name, quantized))
        else:
            entries.append(Entry(f.kernel, f.variable, None, {},
                                 _why_dense(f, methods, optimizer), f.layer, f.name, quantized))
    # What only a regular expression of the optimizer's `select` calls a kernel.
    entries += [Entry(slot.kernel, slot.theta, optimizer.method, slot.state, None, None,
                      slot.kernel.path, False) for slot in masked.values()]
    return entries


def _why_dense(found, methods, optimizer):
    if optimizer is not None and not optimizer.slots:
        return "ts.SparseOptimizer makes its masks when training starts"
    if optimizer is None and found.skipped:
        return found.skipped
    if optimizer is not None and not found.variable.trainable:
        return "it is frozen, and the optimizer sees trainable variables only"
    reasons = (method.unsupported(found.kernel) for method in methods)
    return next((why for why in reasons if why), "not selected")


def counted(entries):
    """The sparsified kernels; all kernels of a plain model."""
    return [e for e in entries if e.method is not None] or entries


def kept(entry):
    """NumPy array of the kernel's shape, zero where a weight is pruned.

    On the optimizer host that is the stored array itself: weights loaded over it (by
    `EarlyStopping(restore_best_weights=True)`, say) are dense until the next step.
    """
    theta = ops.convert_to_tensor(entry.variable)
    if not entry.behind_mask:
        return ops.convert_to_numpy(theta)
    return ops.convert_to_numpy(entry.method.keep(theta, entry.state))


def stored_step(model):
    """Optimizer updates over the model's life, as the model or its optimizer stores them."""
    clocks = [l.read_clock() for l in model._flatten_layers()
              if isinstance(l, SparseLayer) and l.built]
    optimizer = find_sparse_optimizer(model)
    if optimizer is not None and optimizer.built:
        clocks.append(optimizer.read_clock())
    return max((clock[STEP] for clock in clocks), default=0)


def targets(entries, step):
    """{id(variable): sparsity asked for at `step`}, where something is asked of a kernel."""
    found = {}
    for method, group in _groups(entries):
        values = method.target([e.kernel for e in group], step) or []
        found.update({id(e.variable): float(v) for e, v in zip(group, values)})
    return found


def global_target(entries, step):
    """The sparsity asked of all sparsified kernels together, None where nothing is asked."""
    asked, values, sizes = targets(entries, step), [], []
    for method, group in _groups(entries):
        for e in group:
            value = asked.get(id(e.variable))
            if value is None:
                value = method.total_target(step)  # one ranking over all kernels
            if value is None:
                return None
            values.append(value)
            sizes.append(math.prod(e.kernel.shape))
    if len(set(values)) < 2:  # with no rounding
        return values[0] if values else None
    return sum(size * value for size, value in zip(sizes, values)) / sum(sizes)


def _groups(entries):
    return group_by_method([(e.method, e) for e in entries if e.method is not None])


def _check(model):
    check_is_model(model, "ts.report")
    if not model.built:
        raise ValueError(f"Model '{model.name}' is not built, so its kernels do not exist yet. "
                         "Call it once on a batch, or model.build(input_shape).")


# ---- FLOPs


class _Call(NamedTuple):
    """One call of a layer: its arguments by name (shapes in place of tensors), the shape of its
    output, and how often one example makes the call. Shapes begin with the batch axis."""

    arguments: Mapping[str, Any]
    output: tuple
    times: int | None


def _flops_per_weight(model):
    """A function: Entry -> FLOPs of one example for each weight of its kernel, or None."""
    calls: dict = {}
    for layer, call in _calls(model, 1) if is_graph(model) else ():
        calls.setdefault(id(layer), []).append(call)

    def flops(entry):
        uses = [_times(call.times, _uses(entry, call)) for call in calls.get(id(entry.layer), ())]
        return 2 * sum(uses) if uses and None not in uses else None

    return flops


def _calls(model, times):
    """(layer, _Call) for every call of every layer in the graph of a functional model."""
    graph = model._functional if isinstance(model, keras.Sequential) else model
    nodes = [] if graph is None else sum(graph._nodes_by_depth.values(), [])
    for node in nodes:
        layer = node.operation
        if not isinstance(layer, keras.layers.InputLayer) and isinstance(layer, keras.Layer):
            bound = inspect.signature(layer.call).bind(
                *node.arguments.args, **node.arguments.kwargs)
            arguments = {name: value.shape if isinstance(value, keras.KerasTensor) else value
                         for name, value in bound.arguments.items()}
            yield from _inner(layer, _Call(arguments, node.outputs[0].shape, times))


def _inner(layer, call):
    """The calls that a call of `layer` makes: of nested models and wrapped layers."""
    if is_graph(layer):
        yield from _calls(layer, call.times)
    elif type(layer) is keras.layers.TimeDistributed:
        (_, steps, *rest), output = _first(call), call.output
        yield from _inner(layer.layer, _Call({"inputs": (None, *rest)}, (None, *output[2:]),
                                             _times(call.times, steps)))
    elif type(layer) is keras.layers.Bidirectional:
        yield layer.forward_layer, call
        yield layer.backward_layer, call
    else:
        yield layer, call


def _uses(entry, call):
    """How often one call of the layer uses each weight of the kernel: its positions."""
    cls = type(entry.layer)
    cls = cls.keras_class if cls in SPARSE_CLASSES else cls
    if cls not in REPLACEMENTS:
        return None
    shape, axes = entry.kernel.shape, entry.kernel.axes
    if issubclass(cls, keras.layers.Embedding):  # a look-up, or a product with the tied table
        return _times(*_first(call)[1:-1]) if call.arguments.get("reverse") else 0
    if cls in (keras.layers.LSTM, keras.layers.GRU, keras.layers.SimpleRNN):
        return _first(call)[1]
    if cls in (keras.layers.MultiHeadAttention, keras.layers.GroupQueryAttention):
        projection = entry.name.split("/")[0]
        source = projection if projection in ("key", "value") else "query"
        shape = call.arguments.get(source) or call.arguments["value"]  # key defaults to value
        return _times(*shape[1:-1])
    if cls is keras.layers.EinsumDense:
        return _einsum_positions(entry.layer.equation, _first(call))
    if cls.__name__.endswith("Transpose"):  # each input element meets the whole window
        return _per(_first(call), shape[-1])
    if cls.__name__.startswith("Separable"):  # both convolutions end at the same positions
        return _per(call.output, entry.layer.filters)
    outputs = [n for n, role in zip(shape, axes) if role.startswith("out")]
    return _per(call.output, math.prod(outputs))


def _einsum_positions(equation, shape):
    """Product of the input's axes that the output has and the kernel lacks, but for the batch
    axis. (The output's own shape has None where `output_shape` says None.)"""
    left, output = equation.replace(" ", "").split("->")
    inputs, kernel = left.split(",")
    before, _, after = inputs.partition("...")
    dots = len(shape) - len(before) - len(after)
    letters = [*before, *["..."] * dots, *after]
    return _times(*(n for letter, n in list(zip(letters, shape))[1:]
                    if letter in output and letter not in kernel))


def _first(call):
    return next(iter(call.arguments.values()))


def _per(shape, units):
    """Elements of one example divided by `units`."""
    elements = _times(*shape[1:])
    return None if elements is None else elements // units


def _times(*numbers):
    """Their product, None where one is unknown."""
    return None if None in numbers else math.prod(numbers)
