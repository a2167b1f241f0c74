"""Dense files that others have made: what their writers do and this project's do not."""

import copy
import io
import zipfile

import flatbuffers
import keras
import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema
from arm import builder, graphs
from exports import dense, dense_file, prune, rows

import tflite_export
from tflite_export import __main__ as command_line
from tflite_export import encoding, flatbuffer, store, weights, wellformed


def rewritten(tflite, change):
    model = flatbuffer.read(tflite)
    change(model)
    return flatbuffer.write(model)


def packed(model):
    buffer = flatbuffers.Builder(1024)
    buffer.Finish(model.Pack(buffer), wellformed.IDENTIFIER)
    return bytes(buffer.Output())


def with_constants_behind(tflite):
    """The file with its constants behind the flatbuffer, as writers do with large ones."""
    model, behind = flatbuffer.read(tflite), b""
    contents = [None if b.data is None else bytes(b.data) for b in model.buffers]
    places = []
    for buffer, content in zip(model.buffers, contents):
        if content:
            buffer.data, buffer.offset, buffer.size = None, 2, len(content)  # any place
            places.append((buffer, len(behind)))
            behind += content
    start = len(packed(model))  # a place takes as many bytes whatever it is
    for buffer, place in places:
        buffer.offset = start + place
    return packed(model) + behind


def test_constants_behind_the_flatbuffer():
    plain = dense_file(dense)
    file = with_constants_behind(plain)
    read, expected = (flatbuffer.constants(f) for f in (file, plain))
    assert [(c.name, c.value.tobytes()) for c in read] == [
        (c.name, c.value.tobytes()) for c in expected]
    assert len(flatbuffer.write(flatbuffer.read(file))) <= len(plain) + 64
    exported, same = (tflite_export.convert(f) for f in (file, plain))
    assert exported.report.is_sparse
    x = rows(64)
    assert (tflite_export.interpret(exported.tflite, x)
            == tflite_export.interpret(same.tflite, x)).all()
    with pytest.raises(ValueError, match="damaged: buffer .* lies outside its"):
        flatbuffer.read(file[:-100])


def with_labels(tflite):
    """The file with a label file in a zip archive behind it, as TFLite Metadata packs it."""
    whole = io.BytesIO(tflite)
    with zipfile.ZipFile(whole, "a") as archive:
        archive.writestr("labels.txt", "cat\ndog\n")
    return whole.getvalue()


def labels(tflite):
    with zipfile.ZipFile(io.BytesIO(tflite)) as archive:
        assert archive.testzip() is None
        # its places are absolute: a reader that believes them finds the entry there
        (entry,) = archive.infolist()
        assert tflite[entry.header_offset:][:4] == b"PK\3\4"
        assert int.from_bytes(tflite[-6:-2], "little") == archive.start_dir
        return archive.read("labels.txt")


@pytest.mark.parametrize("pack", [lambda file: file, with_constants_behind])
def test_files_packed_behind_the_flatbuffer_are_kept(pack, tmp_path):
    plain = dense_file(dense)
    path = tmp_path / "labelled.tflite"
    path.write_bytes(with_labels(pack(plain)))
    for options in ({}, {"quantize": "int8_weights"}, {"sparse": False}):
        exported, same = (tflite_export.convert(f, **options) for f in (path, plain))
        assert labels(exported.tflite) == b"cat\ndog\n"
        assert exported.report.is_sparse == same.report.is_sparse
        assert exported.report.difference == same.report.difference
    assert labels(store.dense_twin(exported.tflite)) == b"cat\ndog\n"


def test_files_packed_behind_a_file_that_is_quantized_are_kept():
    pytest.importorskip("ai_edge_quantizer")
    exported = tflite_export.convert(with_labels(dense_file(dense)), quantize="dynamic")
    assert labels(exported.tflite) == b"cat\ndog\n"


def test_packed_files_that_cannot_be_read_are_refused():
    file = with_labels(dense_file(dense))
    with pytest.raises(ValueError, match="packed behind the .tflite file cannot be read.*labels"):
        tflite_export.convert(file.replace(b"cat\ndog\n", b"cat\ncow\n"))


@pytest.mark.parametrize("name", [None, b"same"])
def test_tensors_need_no_names(name):
    """Others leave names out, or write the same one everywhere."""
    def unname(model):
        graph = model.subgraphs[0]
        for number, tensor in enumerate(graph.tensors):
            if number not in graph.inputs:
                tensor.name = name

    named = graphs.CLUSTERS["plain"]()
    for sparse in ("auto", "speed"):
        reports = [tflite_export.convert(file, sparse=sparse).report
                   for file in (named, rewritten(named, unname))]
        assert [[(row.stored_sparse, row.runs_sparse) for row in report.layers]
                for report in reports] == [[(False, False)] * 2 + [(True, True)] * 2
                                           + [(False, False)]] * 2


def test_a_constant_may_have_the_name_and_the_shape_of_a_weight():
    b = builder.Builder()
    x = b.input(1, 64)
    weight = b.constant(b.kernel((64, 64), zeros=0.9))
    table = b.constant(np.ones((64, 64), np.int32))
    ids = b.constant(np.zeros(1, np.int32))
    for tensor in (weight, table):
        b.graph.tensors[tensor].name = b"same"
    looked_up = b.add("GATHER", [table, ids], [1, 64], "GatherOptions", "int32")
    exported = tflite_export.convert(b.finish(b.dense(x, 64, weight=weight), looked_up))
    assert exported.report.is_sparse and exported.report.difference == 0


def custom(model):
    """Makes the softmax an operator that LiteRT does not have."""
    for code in model.operatorCodes:
        if code.builtinCode == schema.BuiltinOperator.SOFTMAX:
            code.builtinCode = code.deprecatedBuiltinCode = schema.BuiltinOperator.CUSTOM
            code.customCode = b"Mine"
    for op in model.subgraphs[0].operators:
        if flatbuffer.operator(model, op) == "Mine":
            op.builtinOptionsType, op.builtinOptions = 0, None
            op.customOptions = np.frombuffer(b"options", np.uint8)


def test_a_custom_operator_survives_and_is_not_run(tmp_path, capsys):
    """LiteRT refuses the dense file as well, so that nothing can be compared here."""
    file = rewritten(dense_file(dense), custom)
    with pytest.warns(tflite_export.ExportWarning, match="The file was not run.*Mine"):
        exported = tflite_export.convert(file)
    assert exported.report.is_sparse and exported.report.difference is None
    assert "from the model's: unknown" in str(exported.report)
    assert "was not run" in exported.report.advice[0] and exported.report.notes == ()
    model = flatbuffer.read(exported.tflite)
    (mine,) = [op for op in model.subgraphs[0].operators
               if flatbuffer.operator(model, op) == "Mine"]
    assert bytes(mine.customOptions) == b"options"
    path = exported.save(tmp_path / "mine.tflite")
    exported.report.save_html(tmp_path / "mine.html")
    assert command_line.main(["verify", path]) == 1
    said = capsys.readouterr()
    assert "was not compared with its dense twin" in said.err and "right" not in said.out


def second_signature(model):
    """Another one, whose names and key come before those of the first."""
    first = model.signatureDefs[0]
    other = copy.deepcopy(first)
    other.signatureKey = b"another"
    for port in other.inputs + other.outputs:
        port.name = b"other_" + port.name
    model.signatureDefs = [first, other]


def test_a_file_with_two_signatures(tmp_path, capsys):
    file = rewritten(dense_file(dense), second_signature)
    exported = tflite_export.convert(file)
    assert exported.report.is_sparse and exported.report.difference == 0
    assert [outcome.failure for outcome in exported.report.trial] == [None] * 4
    assert len(flatbuffer.read(exported.tflite).signatureDefs) == 2
    found = tflite_export.interpret(exported.tflite, rows(64))
    (values,) = found.values() if isinstance(found, dict) else [found]
    assert (values == tflite_export.interpret(dense_file(dense), rows(64))).all()
    assert command_line.main(["verify", exported.save(tmp_path / "two.tflite")]) == 0
    assert capsys.readouterr().out.count("0.0e+00 of the greatest output") == 4


def half(model):
    """float16 weights behind a DEQUANTIZE, as the converter's float16 mode has them."""
    graph = model.subgraphs[0]
    for op in list(graph.operators):
        if flatbuffer.operator(model, op) == "FULLY_CONNECTED":
            index = int(op.inputs[1])
            value = flatbuffer.constant(model, graph.tensors[index]).astype(np.float16)
            packed, unpack = store._move(graph, index, "float32"), None
            graph.tensors[packed].buffer = flatbuffer.add_constant(model, value)
            graph.tensors[packed].type = schema.TensorType.FLOAT16
            unpack = store._operator(model, packed, index, schema.BuiltinOperator.DEQUANTIZE, 3,
                                     schema.BuiltinOptions.DequantizeOptions,
                                     schema.DequantizeOptionsT())
            graph.operators = [unpack, *graph.operators]


def test_a_file_that_is_no_float32_file():
    file = rewritten(dense_file(dense), half)
    report = tflite_export.convert(file).report
    assert [size.file for size in report.sizes] == ["this file", "the file given"]
    assert report.bytes_dense == len(file) and "of the bytes of the file given" in report.reason
    for mode in ("int8_weights", "dynamic"):
        with pytest.raises(ValueError, match="quantized already: give the float32 file"):
            tflite_export.convert(file, quantize=mode)


def masked(value):
    """exp(W x + mask): a causal mask is a constant of -inf."""
    b = builder.Builder()
    mask = np.zeros((1, 64), np.float32)
    mask[0, -1] = value
    y = b.dense(b.input(1, 32), 64, zeros=0.9)
    return b.finish(b.unary("EXP", b.binary("ADD", y, b.constant(mask, "mask"))))


def test_infinite_masks_are_no_weights():
    exported = tflite_export.convert(masked(-np.inf))
    assert exported.report.is_sparse and exported.report.difference == 0
    with pytest.raises(ValueError, match="'mask.*' .* holds NaN or infinite"):
        tflite_export.convert(masked(np.nan))


def test_one_buffer_in_two_shapes():
    """The encoding of one shape is none of the other."""
    b = builder.Builder()
    value = b.kernel((600, 200), zeros=0.9)
    wide, narrow = b.constant(value), b.constant(value.reshape(200, 600))
    b.graph.tensors[narrow].buffer = b.graph.tensors[wide].buffer
    y = b.dense(b.dense(b.input(1, 200), 600, weight=wide), 200, weight=narrow)
    exported = tflite_export.convert(b.finish(y))
    assert [(row.shape, row.stored_sparse) for row in exported.report.layers] == [
        ((600, 200), True), ((200, 600), True)]
    read = {c.value.shape: c.value for c in flatbuffer.constants(exported.tflite)}
    assert (read[600, 200] == value).all() and (read[200, 600] == value.reshape(200, 600)).all()


@pytest.mark.parametrize("length", [1, 400])
@pytest.mark.parametrize("int8", [False, True])
def test_the_overhead_is_the_stated_one(int8, length):
    """Beside values and indices: for each tensor that is added, and once for the file."""
    b, names = builder.Builder(), ["n" * length + end for end in "ab"]
    x = b.input(1, 256)
    for name in names:
        kernel = b.constant(b.kernel((256, 256), zeros=0.9))
        b.graph.tensors[kernel].name = name.encode()
        x = b.dense(x, 256, weight=kernel)
    dense = b.finish(x)
    stored = store.store(dense, store.Policy("size", int8)).tflite
    assert store.store(dense, store.Policy("size", int8)).sparse == 2
    model = flatbuffer.read(stored)
    values = sum(len(model.buffers[weight.tensor.buffer].data)
                 + encoding.index_bytes(weight.tensor.sparsity) for weight in weights.find(model))
    tensors = 2 if int8 else 1  # sparse int8, dense int8; scale and zero point in each
    scales = 256 * (4 + 8) * tensors if int8 else 0
    overhead = len(stored) - (len(dense) - 2 * 4 * 256 * 256 + values + 2 * scales)
    assert 0 < overhead <= 2 * tensors * (store.OVERHEAD + length + 1) + store.OVERHEAD_OF_FILE


@pytest.mark.parametrize("mode", ["dynamic", "int8", "float16"])
def test_large_files_are_quantized(mode):
    """ai-edge-quantizer writes constants behind the flatbuffer from 256 KiB on."""
    pytest.importorskip("ai_edge_quantizer")
    model = prune(keras.Sequential([keras.Input((600,)), keras.layers.Dense(600)]), 0.9)
    file = tflite_export.convert(model, sparse=False).tflite
    data = {"representative_data": rows(600)} if mode == "int8" else {}
    exported = tflite_export.convert(file, quantize=mode, **data)
    (row,) = exported.report.layers
    assert row.dtype == ("float16" if mode == "float16" else "int8")
    assert exported.report.difference < 0.1  # of sums of 600 products with normal weights


def test_what_stays_in_floating_point_is_refused_for_micro():
    """ai-edge-quantizer leaves an operator that it does not know as it is."""
    pytest.importorskip("ai_edge_quantizer")
    b = builder.Builder()
    file = rewritten(b.finish(b.unary("EXP", b.dense(b.input(1, 32), 64))), signature)
    with pytest.raises(ValueError, match="EXP .* is left in floating point, and runtime='tflm'"):
        tflite_export.convert(file, runtime="tflm", representative_data=rows(32))


def signature(model):
    """ai-edge-quantizer asks for one."""
    found = schema.SignatureDefT()
    found.signatureKey, found.subgraphIndex = b"serving_default", 0
    found.inputs, found.outputs = ([_port(name, int(t)) for t in tensors] for name, tensors in (
        (b"x", model.subgraphs[0].inputs), (b"y", model.subgraphs[0].outputs)))
    model.signatureDefs = [found]


def _port(name, tensor):
    port = schema.TensorMapT()
    port.name, port.tensorIndex = name, tensor
    return port
