"""Quantized files: zeros stay zeros, and nothing is written that a runtime gets wrong."""

import sys

import keras
import numpy as np
import pytest
from exports import INPUTS, attention, dense, dense_file, prune, recurrent, rows, wide
from keras import layers

import tf_sparsity as ts
import tflite_export
from tflite_export import flatbuffer, kernels, ports, store, weights

MODES = ("dynamic", "int8", "int8_weights", "float16")
STORED = {"dynamic": "int8", "int8": "int8", "int8_weights": "int8", "float16": "float16"}


def fails(match, kind=ValueError):
    return pytest.raises(kind, match=match)


def data(mode, build=wide):
    return INPUTS[build]() if mode == "int8" else None


def found(tflite):
    return weights.find(flatbuffer.read(tflite))


def zeros(tflite):
    return {w.value.shape: w.value == 0 for w in found(tflite)}


@pytest.fixture(scope="module")
def model():
    keras.utils.set_random_seed(0)
    return prune(wide(), 0.9)


@pytest.mark.parametrize("mode", MODES)
def test_zeros_stay_zeros_by_the_converter(model, mode):
    exported = tflite_export.convert(model, quantize=mode, representative_data=data(mode))
    before = zeros(dense_file(wide))
    assert {row.dtype for row in exported.report.layers} == {STORED[mode]}
    for shape, after in zeros(exported.tflite).items():
        assert before[shape].mean() > 0.89 and (after | ~before[shape]).all()
    # rounding to int8 or float16: outputs of order 1 differ by some hundredths at most
    assert 0 < exported.report.difference < 0.05


@pytest.mark.parametrize("mode", MODES)
def test_zeros_stay_zeros_by_ai_edge_quantizer(mode):
    pytest.importorskip("ai_edge_quantizer")
    exported = tflite_export.convert(dense_file(wide), quantize=mode,
                                     representative_data=data(mode))
    before = zeros(dense_file(wide))
    assert {row.dtype for row in exported.report.layers} == {STORED[mode]}
    for shape, after in zeros(exported.tflite).items():
        assert (after | ~before[shape]).all()
    assert 0 < exported.report.difference < 0.05
    names, kinds = zip(*[(i.name, i.dtype) for i in inputs(exported.tflite)])
    assert names == ("input_0",) and kinds == ("float32",)


def inputs(tflite):
    return ports.inputs(flatbuffer.read(tflite))


def test_without_ai_edge_quantizer_there_is_a_way_out(monkeypatch):
    monkeypatch.setitem(sys.modules, "ai_edge_quantizer", None)
    with fails("needs ai-edge-quantizer: pip install ai-edge-quantizer"):
        tflite_export.convert(dense_file(wide), quantize="dynamic")
    assert tflite_export.convert(dense_file(wide), quantize="int8_weights").report.is_sparse


# ---- combinations that some release of the runtime gets wrong


def random_and_blocks():
    """{name: int8 or float16 files, made dense} of weights without and with blocks of 1x16."""
    pytest.importorskip("ai_edge_quantizer")
    for block in (1, 16):
        for mode in ("dynamic", "int8", "float16"):
            yield mode, tflite_export.convert(
                dense_file(wide, 0.9, block), quantize=mode, representative_data=data(mode),
                sparse=False).tflite


def test_nothing_known_to_be_wrong_is_written():
    """Every encoding that is wrong somewhere, by every way to ask for one."""
    for mode, file in random_and_blocks():
        for runtime in ("litert", "litert>=2.2"):
            for sparse in ("auto", "size", "speed"):
                stored = store.store(file, store.Policy(sparse, runtime=runtime)).tflite
                model = flatbuffer.read(stored)
                for weight in weights.find(model):
                    steps = [flatbuffer.operator(model, op) for op in weight.unpacking]
                    version = model.operatorCodes[weight.computing[0].opcodeIndex].version
                    if weight.tensor.sparsity is None:
                        assert "DENSIFY" not in steps
                        continue
                    dtype = weight.value.dtype.name
                    if "DENSIFY" in steps:
                        assert mode != "dynamic" and sparse != "speed"
                        assert dtype != "float16" or runtime == "litert>=2.2"
                        assert dtype != "int8" or weight.operator == "CONV_2D"
                    else:  # the kernel's own blocks, the version that XNNPACK leaves alone
                        assert dtype == "int8" and weight.operator == "FULLY_CONNECTED"
                        assert mode == "dynamic" or runtime == "litert>=2.2"
                        block = weight.tensor.sparsity.dimMetadata[2].denseSize
                        assert version == 8 and block == 16


def test_float16_is_dense_where_old_runtimes_compute_nan():
    pytest.importorskip("ai_edge_quantizer")
    old = tflite_export.convert(dense_file(wide), quantize="float16")
    new = tflite_export.convert(dense_file(wide), quantize="float16", runtime="litert>=2.2")
    assert not old.report.is_sparse and new.report.is_sparse
    assert {row.why for row in old.report.layers} == {
        "LiteRT before 2.2 computes NaN from sparse float16 weights on ARM"}
    assert len(new.tflite) < 0.5 * len(old.tflite)


# ---- the hybrid kernel for blocks of 1x16


def test_blocks_of_sixteen_run_natively():
    """`MagnitudePruning(pattern="1x16")` makes them, and the report says what they save."""
    model = keras.Sequential([keras.Input((256,)), layers.Dense(64, "relu"), layers.Dense(32)])
    method = ts.MagnitudePruning(ts.ConstantSparsity(0.875, 0), pattern="1x16")
    sparse = ts.sparsify(model, method)
    ts.update(sparse)
    exported = tflite_export.convert(sparse, quantize="dynamic")
    first, second = exported.report.layers
    for row in (first, second):
        assert row.runs_sparse and row.encoding == "1x16 blocks" and row.dtype == "int8"
        blocks = row.shape[0] * row.shape[1] // 16
        # 16 values and an index for each of an eighth of the blocks, and where the rows begin
        assert row.bytes == blocks // 8 * 17 + row.shape[0] + 1
        assert row.expected_multiply_adds == row.multiply_adds // 8
    assert exported.report.difference < 0.05


def test_the_hybrid_kernel_counts_columns_and_blocks_in_a_byte():
    """4096 columns and 255 blocks of 1x16 are its most; more is silently wrong, or a crash."""
    wide_, full = keras.Input((4112,)), keras.Input((4096,))
    model = keras.Model([wide_, full], [layers.Dense(16, use_bias=False)(x)
                                        for x in (wide_, full)])
    for layer in model.layers[2:]:
        kernel = np.zeros(layer.kernel.shape, "float32")
        kernel[:, 0] = np.where(np.arange(len(kernel)) % 2, 1, -1)  # an output with all inputs
        layer.kernel.assign(kernel)
    exported = tflite_export.convert(model, quantize="dynamic", sparse="size")
    assert [row.encoding for row in exported.report.layers] == ["dense", "dense"]
    assert all("more than the kernel can count" in row.why for row in exported.report.layers)
    kernel[:16, 0] = 0  # 255 blocks are left
    layer.kernel.assign(kernel)
    exported = tflite_export.convert(model, quantize="dynamic", sparse="size")
    assert {row.shape[1]: row.encoding for row in exported.report.layers} == {
        4112: "dense", 4096: "1x16 blocks"}


def test_a_slower_kernel_is_used_for_size_only():
    """Half of the blocks are empty: smaller, but slower than the dense kernel."""
    file = dense_file(dense, 0.5, 4)
    reports = {sparse: tflite_export.convert(file, sparse=sparse).report
               for sparse in ("auto", "size")}
    with pytest.warns(UserWarning, match="Nothing in this file runs sparse"):
        reports["speed"] = tflite_export.convert(file, sparse="speed").report
    encodings = {sparse: {row.encoding.split()[0] for row in report.layers}
                 for sparse, report in reports.items()}
    assert encodings == {"auto": {"CSR"}, "size": {"1x4"}, "speed": {"dense"}}
    slower = ("the sparse kernel would be slower: 50.0% of its blocks are empty, of 85% that it "
              "takes")
    for sparse in ("auto", "speed"):
        assert {row.why for row in reports[sparse].layers} == {slower}


@pytest.mark.parametrize(("quantize", "pattern", "rows_", "share"), [
    (None, "1x4", (), 0.85), (None, "1x4", (8,), 0.9), ("dynamic", "1x16", (8,), 0.9)])
def test_pruning_to_exactly_the_stated_fraction_is_enough(quantize, pattern, rows_, share):
    """256 x 256 has 16,384 blocks of 4 and 4,096 of 16, of which none of the shares is a whole
    number: 13,926.4, 14,745.6 and 3,686.4. Rounded down, the share is not quite reached."""
    model = keras.Sequential([keras.Input((*rows_, 256)), layers.Dense(256)])
    model = ts.sparsify(model, ts.MagnitudePruning(ts.ConstantSparsity(share, begin_step=0),
                                                   pattern=pattern))
    ts.update(model)
    report = tflite_export.convert(model, quantize=quantize).report
    assert [row.encoding for row in report.layers] == [f"{pattern} blocks"]
    assert all(row.runs_sparse for row in report.layers)


def test_a_table_in_int8_says_what_helps():
    """TensorFlow quantizes what is looked up like activations; then 0 may be any number."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((8,), dtype="int32")
    x = layers.Embedding(500, 64, name="table")(inputs)
    model = keras.Model(inputs, layers.Dense(4)(layers.GlobalAveragePooling1D()(x)))
    table = model.get_layer("table").embeddings
    table.assign(np.where(np.arange(32000).reshape(500, 64) % 10 == 0, np.linspace(
        -0.2, 1.0, 32000).reshape(500, 64), 0))  # not symmetric
    report = tflite_export.convert(model, quantize="int8", representative_data=np.arange(
        800).reshape(100, 8) % 500).report
    (row,) = [row for row in report.layers if "GATHER" in row.operator]
    assert row.encoding == "dense" and "a stored 0 does not stand for" in row.why
    assert row.change.startswith("quantize=None")
    plain = tflite_export.convert(model).report
    assert all(row.stored_sparse for row in plain.layers if "GATHER" in row.operator)


def test_weights_beyond_float16_are_refused():
    model = keras.Sequential([keras.Input((64,)), layers.Dense(64, use_bias=False)])
    model.set_weights([np.eye(64) * 7e4])
    with fails("holds 70000, and float16 ends at 65504: quantize=None or"):
        tflite_export.convert(model, quantize="float16")


def test_int8_storage_that_saves_nothing_is_said():
    """8 x 8 weights: 192 bytes less, and over 256 for a tensor and what unpacks it."""
    model = keras.Sequential([keras.Input((8,)), layers.Dense(8)])
    report = tflite_export.convert(model, quantize="int8_weights").report
    assert any(line.startswith("Nothing is stored as int8") for line in report.advice)
    model = keras.Sequential([keras.Input((64,)), layers.Dense(64)])
    report = tflite_export.convert(model, quantize="int8_weights").report
    assert not any(line.startswith("Nothing is stored as int8") for line in report.advice)


def test_biases_beyond_float16_are_refused():
    """TensorFlow's converter writes 65504 for them."""
    model = keras.Sequential([keras.Input((64,)), layers.Dense(64), layers.Dense(1)])
    model.layers[1].bias.assign([65504])
    assert tflite_export.convert(model, quantize="float16").report.difference < 100
    model.layers[1].bias.assign([180_000])
    with fails("holds 180000, and float16 ends at 65504: quantize=None or"):
        tflite_export.convert(model, quantize="float16")


# ---- arguments


def test_representative_data_is_checked():
    file = dense_file(wide)
    with fails("quantize='int8' needs representative_data"):
        tflite_export.convert(file, quantize="int8")
    with fails("is for quantize='int8'; got quantize='dynamic'"):
        tflite_export.convert(file, quantize="dynamic", representative_data=rows(4, 4, 16))
    for wrong, sentence in (
        (rows(4, 4, 15), r"input_0' must have the shape \(rows, 4, 4, 16\).* got \(7, 4, 4, 15\)"),
        (rows(4, 4, 16)[:0], "with 1 row or more"),
        (np.float32(3), r"got \(\)"),
        ((row for row in rows(4, 4, 16)), "must be an array of rows; got generator"),
        (np.full((2, 4, 4, 16), np.nan), "finite numbers only"),
        (np.full((2, 4, 4, 16), "a"), "finite numbers only"),
        ({"x": rows(4, 4, 16)}, r"each of the inputs \['input_0'\]; got \['x'\]"),
    ):
        with fails(sentence):
            tflite_export.convert(file, quantize="int8", representative_data=wrong)
    with fails("has the inputs .*; got 2 arrays"):
        tflite_export.convert(dense(), quantize="int8", representative_data=[rows(64), rows(64)])


def test_data_for_several_inputs_is_nested_as_the_model_takes_it():
    inputs = {"a": keras.Input((8,), name="a"), "b": keras.Input((8,), name="b")}
    model = keras.Model(inputs, layers.Dense(4)(inputs["a"] + 10 * inputs["b"]))
    arrays = {"b": rows(8), "a": 2 * rows(8)}
    one = tflite_export.convert(model, quantize="int8", representative_data=arrays)
    assert one.report.difference < 0.5
    with fails("as many rows for each input"):
        tflite_export.convert(model, quantize="int8",
                              representative_data={"a": rows(8), "b": rows(8)[:3]})


def test_data_by_a_wrong_name_is_refused():
    """Of a model too, whose one array was found whatever its key."""
    model = wide()
    with fails(r"has the inputs \['input_0'\]; got a dict with the keys \['foo'\]"):
        tflite_export.convert(model, quantize="int8",
                              representative_data={"foo": rows(4, 4, 16)})
    with fails(r"has the inputs \['input_0'\]; got a dict with the keys \['foo'\]"):
        tflite_export.compare(model, dense_file(wide), {"foo": rows(4, 4, 16)})
    x = rows(4, 4, 16)  # by the name in the file it is the same as without
    assert (tflite_export.compare(model, dense_file(wide), {"input_0": x})
            == tflite_export.compare(model, dense_file(wide), x))


@pytest.mark.parametrize(("number", "told"), [
    (0.5, "0.5"), (2.0**40, "1099511627776.0")])
def test_data_for_integers_are_integers(number, told):
    ids = np.full((3, 6), 1.0)
    port = ports.Input("ids", (1, 6), "int32")
    (first, *_) = ports.batches([port], {"ids": ids}, "representative_data")
    assert first["ids"].dtype == np.int32 and (first["ids"] == 1).all()
    ids[1, 2] = number
    with fails(f"for input 'ids' must hold whole numbers that int32 has; got {told}"):
        ports.batches([port], {"ids": ids}, "representative_data")


def test_ids_out_of_range_are_the_fault_of_the_data():
    """The converter only says "gather index out of bounds"."""
    ids = INPUTS[attention]()
    ids[3, 2] = 20
    with fails("^Model '.*' fails on representative_data: .*20 is not in .0, 20."):
        tflite_export.convert(attention(), quantize="int8", representative_data=ids)


def test_int8_refuses_loops():
    """The converter's calibration ends the process there."""
    model = recurrent()
    with fails("inside WHILE.*unroll=True.*'dynamic' or 'int8_weights'"):
        tflite_export.convert(model, quantize="int8", representative_data=rows(5, 8))
    with fails("inside WHILE"):
        tflite_export.convert(dense_file(recurrent), quantize="int8",
                              representative_data=rows(5, 8))


def test_quantizing_twice_is_refused():
    pytest.importorskip("ai_edge_quantizer")
    once = tflite_export.convert(dense_file(wide), quantize="dynamic", sparse=False).tflite
    with fails("is quantized already"):
        tflite_export.convert(once, quantize="int8", representative_data=rows(4, 4, 16))


# ---- TensorFlow Lite Micro


def test_micro_gets_a_dense_int8_file(model):
    exported = tflite_export.convert(model, runtime="tflm", representative_data=rows(4, 4, 16))
    assert not exported.report.is_sparse and "Micro has no sparse kernels" in exported.report.reason
    assert {row.dtype for row in exported.report.layers} == {"int8"}
    assert {row.encoding for row in exported.report.layers} == {"dense"}
    operators = flatbuffer.operators(exported.tflite)
    assert "DENSIFY" not in operators and operators[0] == "QUANTIZE"


def test_micro_refuses_what_it_has_not():
    file = dense_file(wide)
    for sparse in ("size", "speed"):
        with fails("Micro has no sparse kernels and no DENSIFY"):
            tflite_export.convert(file, runtime="tflm", sparse=sparse,
                                  representative_data=rows(4, 4, 16))
    with fails("int8 weights and activations; got quantize='dynamic'"):
        tflite_export.convert(file, runtime="tflm", quantize="dynamic")
    for quantize in (None, "int8"):
        with fails("^runtime='tflm' makes .* int8 .* needs representative_data, .* input name.$"):
            tflite_export.convert(file, runtime="tflm", quantize=quantize)
    with fails("runtime must be one of 'litert', 'litert>=2.2', 'tflm'; got 'arm'"):
        tflite_export.convert(file, runtime="arm")


def test_the_runtimes_are_documented():
    for name in kernels.RUNTIMES:
        assert f'"{name}"' in tflite_export.convert.__doc__


def versions(tflite, kind):
    """Of all operators of a kind."""
    model = flatbuffer.read(tflite)
    return {model.operatorCodes[op.opcodeIndex].version for graph in model.subgraphs
            for op in graph.operators if flatbuffer.operator(model, op) == kind}


@pytest.mark.parametrize("given", [lambda: prune(dense(), 0.9, 16),
                                   lambda: dense_file(dense, 0.9, 16)],
                         ids=["converter", "ai-edge-quantizer"])
def test_dynamic_dense_layers_have_one_scale(given):
    """Several need version 12, which tflite-runtime 2.14 does not load; without it, it computes
    with the first one."""
    exported = tflite_export.convert(given(), quantize="dynamic")
    assert max(versions(exported.tflite, "FULLY_CONNECTED")) < 12
    assert [len(w.tensor.quantization.scale) for w in found(exported.tflite)] == [1, 1]
    assert exported.report.is_sparse


def test_the_dense_file_of_a_sparse_one_has_its_dense_kernels():
    """Version 8 would keep XNNPACK from the dense weight, too."""
    for quantize, block in (("dynamic", 16), (None, 4)):
        model = prune(dense(), 0.9, block)
        sparse, plain = (tflite_export.convert(model, quantize=quantize, sparse=s).tflite
                         for s in ("auto", False))
        assert 8 in versions(sparse, "FULLY_CONNECTED")
        again = store.dense_file(sparse)
        assert 8 not in versions(again, "FULLY_CONNECTED")
        if quantize:
            assert versions(again, "FULLY_CONNECTED") == versions(plain, "FULLY_CONNECTED")
        x = INPUTS[dense]()
        np.testing.assert_array_equal(tflite_export.interpret(again, x),
                                      tflite_export.interpret(plain, x))
