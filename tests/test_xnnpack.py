"""The static checker against what was measured; the measurements are in test-arm's result file.

The tables below are the outcomes that the stock ARM binaries have shown, written down by hand.
"""

import hashlib
import json
from importlib import metadata

import numpy as np
import pytest
from arm import __main__ as main
from arm import graphs, matrix, networks
from arm.builder import Builder, together
from damage import refusals

from tflite_export import __main__ as command_line
from tflite_export import encode, flatbuffer, kernels, layers, store, xnnpack
from tflite_export.legalize import legalize
from tflite_export.xnnpack import FIRST, GENERATIONS, MIDDLE, NEWEST, OLDEST, predict

S, D, W = "sparse", "dense", "wrong"


def stored(tflite, int8=False):
    return store.store(tflite, store.Policy("size", int8)).tflite


def outcomes(tflite):
    """The verdicts in the order of GENERATIONS"""
    return [predict(tflite).runtimes[generation] for generation in GENERATIONS]


@pytest.mark.parametrize("int8", [False, True])
@pytest.mark.parametrize("name", [
    "plain", "batch_of_two", "odd_sizes", "residual", "squeeze_excite", "strided_depthwise",
    "depthwise_5x5", "hard_swish", "resized", "depth_to_space", "rescaled_input", "two_heads",
    "barrier_before_dense", "pooled_output", "two_means", "two_images",
    "two_branches_of_one_image", "hard_sigmoid_by_scalars", "vector_of_rank_4_first",
    "scalar_of_rank_4_first", "two_pointwise_layers_as_head", "reshaped_mean_of_rank_4"])
def test_right_and_sparse_everywhere(name, int8):
    prediction = predict(stored(graphs.CLUSTERS[name](), int8))
    assert set(prediction.runtimes.values()) == {S}, prediction.reasons
    assert not [reason for reason in prediction.reasons if reason.verdict == W]


# name: verdicts for tflite-runtime 2.14, LiteRT 1.2, 1.4 to 2.1, 2.2 and newer
MEASURED = {
    # Sparse in some, dense in others.
    "large_dense_head": [S, D, S, S],
    "sum_instead_of_mean": [D, S, S, S],
    "pointwise_dense": [D, S, S, S],
    "just_over_two_thirds": [S, D, S, S],
    "just_under_two_thirds": [D, D, D, D],
    # Heads.
    "pointwise_head": [S, W, W, W],
    "pointwise_head_as_output": [S, W, W, W],
    "pooled_output_of_rank_4": [S, W, W, W],
    "dense_after_a_mean_of_rank_4": [S, W, S, S],
    "activation_after_a_mean_of_rank_4": [S, W, W, W],
    # What leaves a cluster beside a mean.
    **dict.fromkeys([
        "branch_to_a_dense_3x3", "branch_to_an_average_pool", "branch_to_flatten",
        "branch_of_a_depthwise_to_flatten", "branch_of_a_hard_swish_to_average_pool",
        "branch_to_an_output", "branch_to_softmax", "branch_of_two_to_a_concatenation",
        "branch_of_a_sum_to_flatten", "branch_of_squeeze_excite_to_an_output",
        "features_are_an_output_too", "concatenation_inside", "dense_3x3_inside",
        "dilated_depthwise", "depth_multiplier", "same_padding_of_a_strided_depthwise",
        "scale_of_each_channel", "scalar_of_rank_0", "scalar_of_rank_4_second",
        "vector_of_rank_4_second"], [W, W, W, W]),
    "many_unary_operators": [W, S, S, S],  # with TANH
    "unary_exp": [D, D, S, S],  # where XNNPACK does not run it at all, no cluster has an end
    "unary_gelu": [D, S, S, S],
    "mean_over_one_axis": [D, W, W, W],
    # Right, never sparse.
    **dict.fromkeys([
        "same_padding_of_the_stem", "max_pool_exit", "spatial_output", "flattened_output",
        "stem_5x5", "grey_image", "stem_of_stride_one", "strided_pointwise", "subtraction_inside",
        "squeeze_excite_of_dense_layers", "mean_feeds_the_gate_and_an_output",
        "features_are_flattened_too"], [D, D, D, D]),
    "half_precision_allowed": [S, S, S, S],
    "half_precision_sums_allowed": [S, W, W, D],
}


@pytest.mark.parametrize("name", MEASURED)
def test_as_measured(name):
    assert outcomes(stored(graphs.CLUSTERS[name]())) == MEASURED[name]


ENCODINGS = {
    "float_csr": [S, S, S, S],
    "float_1x4": [S, S, S, S],
    "float_1x16": [W, W, W, W],
    "float_1x4_of_another_version": [W, W, W, W],
    "float_csr_of_another_version": [W, W, W, W],
    "float_through_densify": [D, D, D, D],
    "int8_weight_through_densify_and_dequantize": [D, D, D, D],
    "float16_through_densify_and_dequantize": [D, W, W, D],
    "convolution_float16_through_densify": [D, W, W, D],
    "float16_without_densify": [W, W, W, W],
    "convolution_through_densify": [D, D, D, D],
    "convolution_without_densify": [W, W, W, W],
    "cluster_of_float16": [S, W, W, S],
    "hybrid_1x16": [S, S, S, S],
    "hybrid_1x16_at_the_limit_of_columns": [S, S, S, S],
    "hybrid_1x16_beyond_the_limit_of_columns": [W, W, W, W],
    "hybrid_1x16_with_256_blocks_in_a_row": [W, W, W, W],
    "hybrid_csr": [W, W, W, W],
    "hybrid_1x4": [W, W, W, W],
    "hybrid_1x16_of_another_version": [W, W, W, W],
    "hybrid_through_densify": [D, W, W, W],
    "hybrid_convolution_through_densify": [D, W, W, W],
    "int8_1x16": [S, S, S, S],
    "int8_1x16_per_channel": [W, S, S, S],
    "int8_csr": [W, W, W, W],
    "int8_1x4": [W, W, W, W],
    "int8_dense_layer_through_densify": [D, D, D, W],
    "int8_convolution_through_densify": [D, D, D, D],
}


@pytest.mark.parametrize("name", ENCODINGS)
def test_encodings(name):
    assert outcomes(graphs.ENCODINGS[name]()) == ENCODINGS[name]


@pytest.mark.parametrize("runtime", ["litert", kernels.NEWER])
@pytest.mark.parametrize("name", ENCODINGS)
def test_the_report_agrees(name, runtime):
    tflite = graphs.ENCODINGS[name]()
    verdicts = {predict(tflite).runtimes[g] for g in kernels.GENERATIONS[runtime]}
    stored_sparse = [row for row in layers.layers(tflite, store.Policy(runtime=runtime))
                     if row.stored_sparse]
    assert stored_sparse
    for row in stored_sparse:
        assert row.runs_sparse == (verdicts == {S})
        assert row.why.startswith("wrong on ") == (W in verdicts)


@pytest.mark.parametrize("name", ["float16_through_densify_and_dequantize",
                                  "convolution_float16_through_densify"])
def test_the_reason_is_that_of_the_release_that_is_wrong(name):
    """The newest release only unpacks these weights: another reason."""
    (reason,) = encode.look(graphs.ENCODINGS[name]()).runs_sparse("litert").values()
    assert reason.text.startswith(f"wrong on {FIRST}, {MIDDLE}: a float16 weight behind a DENSIFY")


def test_rows_that_no_block_divides(tmp_path, capsys):
    """The float kernel reads CSR of any number of inputs."""
    tflite = graphs._dense_layer(graphs._scattered(32, 30))
    (row,) = layers.layers(tflite)
    assert row.runs_sparse and row.why == "by the kernel for float32, CSR"
    assert row.expected_multiply_adds == 32 * 3
    (tmp_path / "csr.tflite").write_bytes(tflite)
    assert command_line.main(["inspect", str(tmp_path / "csr.tflite")]) == 0
    assert "sparse: weight1: by the kernel for float32, CSR" in capsys.readouterr().out


# What is said.


@pytest.mark.parametrize(("name", "words"), [
    ("just_under_two_thirds", "of the 2304 weights of its 1x1 convolutions are zero (66%)"),
    ("same_padding_of_the_stem", "CONV_2D 'conv_2d3': with stride 2, its padding"),
    ("stem_5x5", "a 5x5 convolution does not run sparse"),
    ("grey_image", "a 3x3 convolution of 1 channels"),
    ("stem_of_stride_one", "the first convolution has stride 1"),
    ("max_pool_exit", "no global mean"),
    ("spatial_output", "no global mean"),
    ("strided_pointwise", "a 1x1 convolution with a stride"),
    ("subtraction_inside", "SUB 'sub15': sparse inference does not know this operator"),
    ("scale_of_each_channel", "hands its result to MUL"),
    ("branch_to_an_output", "hands its result to an output of the network"),
    ("pointwise_head", "hands its result to RESHAPE"),
    ("pointwise_head", "let `legalize` take the head out"),
    ("pooled_output_of_rank_4", "MEAN 'mean16': at the end of a sparse cluster"),
    ("half_precision_sums_allowed", "allows float16, with which a sparse cluster does not load"),
    ("half_precision_sums_allowed", "in which nothing runs sparse"),
])
def test_reasons_name_the_operator_and_what_to_change(name, words):
    assert any(words in str(reason) for reason in predict(stored(graphs.CLUSTERS[name]())).reasons)


def test_reasons_say_for_which_runtimes():
    reasons = [str(r) for r in predict(stored(graphs.CLUSTERS["large_dense_head"]())).reasons]
    assert any("weights of its 1x1 convolutions are zero" in r and r.endswith("(litert 1.2)")
               for r in reasons)


def test_operators():
    prediction = predict(stored(graphs.CLUSTERS["plain"]()))
    assert [(op.kind, op.runs[NEWEST]) for op in prediction.operators] == [
        ("CONV_2D", D), ("DEPTHWISE_CONV_2D", D), ("CONV_2D", S), ("CONV_2D", S),
        ("FULLY_CONNECTED", D)]
    assert prediction.operators[2].why[NEWEST] == (None, None)
    wrong = predict(stored(graphs.CLUSTERS["branch_to_an_output"]())).operators
    assert [op.name for op in wrong if op.runs[NEWEST] == W] == ["conv_2d22"]


def test_zeros_are_not_enough():
    """XNNPACK looks at the zeros only if some weight is stored sparse."""
    dense = graphs.CLUSTERS["plain"]()
    prediction = predict(dense)
    assert set(prediction.runtimes.values()) == {D}
    assert "no weight is stored sparse" in str(prediction.reasons[0])


def test_one_sparse_weight_is_enough():
    b = Builder()
    x = b.depthwise(b.stem(b.input(1, 32, 32, 3)))
    prediction = predict(stored(b.finish(b.mean(b.conv(b.conv(x, 8), 64)))))
    assert set(prediction.runtimes.values()) == {S}  # the kernel of 16 x 8 is too small to encode


def test_a_custom_operator_takes_features_out_of_the_cluster():
    """Unlike RESHAPE, XNNPACK does not see it, and only the cluster before it is left: wrong."""
    b = Builder()
    x = b.conv(b.depthwise(b.stem(b.input(1, 32, 32, 3))), 48, activation="RELU6")
    y = b.add("CUMSUM", [x, b.constant(np.int32(1))], b.shape(x), "CumsumOptions")
    tflite = b.finish(b.dense(b.mean(b.conv(x, 32)), 10), y)
    assert outcomes(stored(tflite)) == [W, W, W, W]


def first_graph():
    b = Builder()
    return b.finish(b.dense(b.input(1, 32), 4))


@pytest.mark.parametrize("name", ["plain", "branch_to_an_output", "large_dense_head"])
def test_a_second_graph_is_predicted_as_the_first(name):
    """LiteRT gives all graphs to XNNPACK: those of IF and WHILE, and of further signatures."""
    alone = stored(graphs.CLUSTERS[name]())
    assert outcomes(together(first_graph(), alone)) == outcomes(alone)


def test_what_is_wrong_in_a_second_graph_is_refused():
    """Only the main graph is rewritten: what another one leaks stays wrong."""
    dense = together(first_graph(), graphs.CLUSTERS["branch_to_an_output"]())
    for sparse in ("auto", "size"):
        with pytest.raises(ValueError, match="CONV_2D 'conv_2d22' would be wrong on .*litert 2.2.*"
                                             "sparse=False writes the file dense"):
            encode.encode(dense, store.Policy(sparse))


@pytest.mark.slow
@pytest.mark.parametrize("name", networks.NAMES)
def test_networks_of_keras_applications_run_sparse_when_legalized(name):
    dense = networks.network(name)
    legal = legalize(dense).tflite
    for int8 in (False, True):
        assert set(outcomes(stored(legal, int8))) == {S}
        assert S not in outcomes(stored(dense, int8))


def test_predictions_are_the_recorded_outcomes():
    """The matrix without the emulator: its outcomes are in the result file."""
    result = json.loads((main.RESULTS / "arm_matrix.json").read_text())
    recorded = result["outcomes"]
    files = matrix.files()
    assert set(recorded) == set(files)
    if result["versions"]["flatbuffers"] == metadata.version("flatbuffers"):  # it makes the bytes
        for name, file in files.items():
            assert recorded[name]["sha256"] == hashlib.sha256(file.tflite).hexdigest(), name
    predictions = {name: predict(file.tflite).runtimes for name, file in files.items()}
    mismatches, refused = main.compare(recorded, predictions)
    assert mismatches == [] and len(refused) <= main.REFUSED


def test_random_clusters_have_a_verdict_everywhere():
    for graph in graphs.RANDOM.values():
        prediction = predict(stored(graph()))
        for generation in GENERATIONS:
            reasons = [r for r in prediction.reasons if generation in r.runtimes]
            verdict = prediction.runtimes[generation]
            assert verdict == S or any(r.verdict == verdict for r in reasons)


@pytest.mark.parametrize("name", ["hybrid_1x16", "int8_convolution_through_densify"])
def test_a_sparse_weight_without_values_is_wrong(name):
    """As others may store a weight of zeros: no runtime takes it for a constant."""
    model = flatbuffer.read(graphs.ENCODINGS[name]())
    for tensor in model.subgraphs[0].tensors:
        if tensor.sparsity is not None:
            model.buffers[tensor.buffer].data = np.zeros(0, np.uint8)
    prediction = xnnpack.predict(flatbuffer.write(model))
    assert set(prediction.runtimes.values()) == {"wrong"}
    assert "its sparse weight has no values" in prediction.reasons[0].text


def test_damaged_files_are_refused_in_a_sentence():
    assert 0 < refusals(predict, stored(graphs.CLUSTERS["squeeze_excite"]()), 100, seed=1) < 100
    with pytest.raises(ValueError, match="Not a .tflite file"):
        xnnpack.predict(b"nothing")


def test_an_operator_without_inputs_is_dense():
    model = flatbuffer.read(stored(graphs.CLUSTERS["unary_hard_swish"]()))
    (op,) = [op for op in model.subgraphs[0].operators
             if flatbuffer.operator(model, op) == "HARD_SWISH"]
    op.inputs = np.empty(0, np.int32)
    assert S not in predict(flatbuffer.write(model)).runtimes.values()


def test_generations_are_those_of_the_tables():
    assert (OLDEST, FIRST, MIDDLE, NEWEST) == GENERATIONS
