"""A row for each weight of a .tflite file: how it is stored, how it runs, and what would help."""

from typing import NamedTuple

import numpy as np

from tflite_export import encode, encoding, flatbuffer, kernels, store, weights


class LayerReport(NamedTuple):
    """One weight of the file. Sizes are in bytes."""

    name: str  # as TensorFlow's converter names it
    operator: str  # that computes with it
    shape: tuple  # in TFLite's layout, for instance (units, inputs) for Dense
    dtype: str  # that it is stored in
    computes_in: str  # the dtype of the multiplications: int8 where a kernel reads int8 weights
    sparsity: float  # fraction of zeros, in [0, 1]
    encoding: str  # "dense", "CSR", "CSR by columns", "1x4 blocks", ...
    bytes: int  # values, and indices where it is stored sparse
    bytes_dense: int  # of all values in this dtype
    lower_bound: int  # of any encoding without blocks: each non-zero with its shortest index
    runs_sparse: bool
    why: str  # it runs sparse, or does not
    change: str | None  # what would make it run sparse, or smaller
    multiply_adds: int  # in one run, zeros included
    expected_multiply_adds: int  # without those that a sparse kernel leaves out

    @property
    def stored_sparse(self):
        """Whether it is stored with a sparse encoding."""
        return self.encoding != "dense"


def layers(tflite, policy=store.Policy(), runs_sparse=None):
    """LayerReports of a file, in its order.

    Args:
        tflite: bytes.
        policy: the store.Policy that it was written with, or that it is judged by.
        runs_sparse: as encode.Encoded has it; None: it is read from the file.
    """
    model = flatbuffer.read(tflite)
    if runs_sparse is None:
        runs_sparse = encode.look(tflite).runs_sparse(policy.runtime)
    return tuple(_layer(model, weight, policy, runs_sparse) for weight in weights.find(model))


def _layer(model, weight, policy, runs_sparse):
    sparsity, value = weight.tensor.sparsity, weight.value
    size = len(model.buffers[weight.tensor.buffer].data)
    kept = 1.0
    if sparsity is None:
        kind, reason, runs = "dense", _why_dense(weight, policy), False
    else:
        size += encoding.index_bytes(sparsity)
        kind = encoding.describe(sparsity)
        reason = runs_sparse.get(weight.key, _UNPACKED)
        runs, kept = reason is None, 1 - weight.zeros
        if runs and weight.unpacking:
            reason = kernels.Reason("XNNPACK runs it sparse")
        elif runs:
            kernel = kernels.NATIVE[value.dtype.name, weight.activations]
            block = kernel.block if kind == f"1x{kernel.block} blocks" else 1
            reason = kernels.Reason(f"by the kernel for {kernel.name}" if block > 1 else
                                    f"by the kernel for {value.dtype.name}, {kind}")
            kept = 1 - kernels.empty_blocks(value, block)
        elif weight.key not in runs_sparse and weight.operator == "FULLY_CONNECTED":
            reason = _why_not_native(weight, policy)
    work = weight.multiply_adds
    return LayerReport(
        name=weight.name, operator=weight.operator, shape=value.shape, dtype=value.dtype.name,
        computes_in="int8" if value.dtype == np.int8 and not weight.unpacking
        else weight.activations,
        sparsity=weight.zeros, encoding=kind, bytes=size, bytes_dense=value.nbytes,
        lower_bound=min(encoding.lower_bound(value), value.nbytes), runs_sparse=runs,
        why=reason.text, change=reason.change, multiply_adds=work,
        expected_multiply_adds=round(work * kept) if runs else work,
    )


def _why_not_native(weight, policy):
    """Why a dense layer whose weight is unpacked is not left to a kernel that reads it sparse."""
    if weight.value.dtype != np.float32:
        return kernels.Reason(encode.UNPACKED, "quantize='dynamic' and pattern='1x16'")
    kernel, refused = kernels.native(
        weight._replace(unpacking=(), users=weight.computing), policy.runtime)
    if refused is None:
        return _slower(weight, kernel)
    return kernels.Reason(f"{encode.UNPACKED}: {refused.text}", refused.change)


def _slower(weight, kernel):
    share = kernels.empty_blocks(weight.value, kernel.block)
    least = store.least_empty(weight, kernel)
    return kernels.Reason(f"the sparse kernel would be slower: {share:.1%} of its blocks are "
                          f"empty, of {least:.0%} that it takes", "prune more of it")


_UNPACKED = kernels.Reason(encode.UNPACKED)
_NOT_SMALLER = kernels.Reason("it would not be smaller with the places of its zeros",
                              "prune more of it")


def _why_dense(weight, policy):
    """Why a weight that is stored dense is."""
    if policy.sparse is False and weight.zeros:
        return kernels.Reason("as asked", "sparse='auto'")
    if weight.value.nbytes <= store.overhead(weight):
        return kernels.Reason(f"its {weight.value.nbytes} bytes are no more than the "
                              f"{store.overhead(weight)} that a sparse tensor takes besides its "
                              "values")
    if weight.zeros == 0:
        return kernels.Reason("it has no zeros", "prune it" if encode.pointwise(weight)
                              else "prune it, to be smaller: no kernel runs it sparse")
    kernel, refused = kernels.native(weight, policy.runtime)
    unpack = kernels.unpackable(weight, policy.runtime)
    if refused is None and not store.pays(weight, kernel):
        return _slower(weight, kernel)
    if unpack is not None:
        if kernel is None or refused is None:
            return unpack
        return kernels.Reason(f"{refused.text}, and {unpack.text}", refused.change)
    smallest = encoding.smallest(weight.value)
    if smallest is None or smallest.bytes + store.overhead(weight) >= weight.value.nbytes:
        return _NOT_SMALLER
    if policy.sparse == "speed":
        if kernel is not None:
            return refused
        return kernels.Reason("no kernel would run it sparse", "sparse='auto' stores it smaller")
    return kernels.Reason("it could be stored smaller", "sparse='auto'")


def total(rows, field):
    """The sum of one field over the rows."""
    return int(np.sum([getattr(row, field) for row in rows], dtype=np.int64))
