"""Inputs of .tflite files: random arrays for them, and files whose inputs cannot be fed."""

import math

import numpy as np
import pytest
from arm.builder import Builder

import tflite_export
from tflite_export import flatbuffer, legalize, ports
from tflite_export.__main__ import main
from tflite_export.benchmark import benchmark


def fails(match):
    return pytest.raises(ValueError, match=match)


def dense_layer(rows=2):
    b = Builder()
    return b.finish(b.dense(b.input(rows, 256), 64, zeros=0.9))


def of_input_shape(*shape):
    """The file of a dense layer whose input states another shape."""
    model = flatbuffer.read(dense_layer())
    model.subgraphs[0].tensors[int(model.subgraphs[0].inputs[0])].shape = np.array(shape, np.int32)
    return flatbuffer.write(model)


def test_an_input_of_any_size_is_not_allocated(tmp_path, capsys):
    shape = 1, 2**31 - 1, 3, 3
    tflite = of_input_shape(*shape)
    sentence = rf"takes {4 * math.prod(shape):,} bytes, more than .*'input0' has the shape \(1, 2"
    for use in (tflite_export.convert, lambda file: benchmark(file, dense_layer())):
        with fails(sentence):
            use(tflite)
    (tmp_path / "large.tflite").write_bytes(tflite)
    assert main(["verify", str(tmp_path / "large.tflite")]) == 1
    assert "Make the file for a smaller batch or smaller inputs." in capsys.readouterr().err


def test_the_limit_is_of_all_inputs_together(monkeypatch):
    two = [ports.Input("a", (1, 8), "float32"), ports.Input("b", (2, 2, 2), "int64")]
    monkeypatch.setattr(ports, "LIMIT", 96)
    (batch,) = ports.random_batches(two, 1)
    assert sum(array.nbytes for array in batch.values()) == 96
    monkeypatch.setattr(ports, "LIMIT", 95)
    with fails("takes 96 bytes, more than the 95 that .*'b' has the shape"):
        ports.random_batches(two, 1)


def test_a_scalar_input_takes_no_rows():
    b = Builder()
    x = b.dense(b.input(1, 256), 64, zeros=0.9)
    tflite = b.finish(b.binary("MUL", x, b.input()))
    assert tflite_export.convert(tflite).report.is_sparse
    rows = {port.name: np.ones((3, *port.shape[1:]))
            for port in ports.inputs(flatbuffer.read(tflite))}
    for use in (lambda: tflite_export.interpret(tflite, rows),
                lambda: tflite_export.convert(tflite, quantize="int8", representative_data=rows)):
        with fails(r"Input 'input\d+' of the file is a scalar, .*shape \(batch, 1\)"):
            use()


@pytest.mark.parametrize("content", [b"", b"[", b"\xff", b"7", b'"input0"', b'{"input0": 1}',
                                     b"[[1]]", b"[" * 100_000])
def test_damaged_metadata_of_a_turned_input(content):
    b = Builder()
    b.metadata(legalize.ROTATED, content)
    with fails("damaged: its metadata 'tf_sparsity.rotated_input' must be a JSON list"):
        ports.turned(flatbuffer.read(b.finish(b.dense(b.input(1, 8), 4))))
