"""Which kernels a selection takes, what the paths are, and what an error says."""

import keras
import pytest
from keras import layers

import tf_sparsity as ts
from tf_sparsity.kernels import find
from tf_sparsity.selection import choose

pytestmark = pytest.mark.any_backend

PATHS = ["stem/kernel", "block/a/kernel", "block/b/kernel", "block/b/recurrent_kernel",
         "head/kernel"]
LAYERS = ["stem", "a", "b", "b", "head"]  # stand-ins: choose passes them on, nothing more
METHOD = ts.MagnitudePruning(ts.ConstantSparsity(0.5, 0))


@pytest.mark.parametrize("select, chosen", [
    (None, "11111"),
    ("block", "01110"),
    ("^block/a", "01000"),
    (["stem", "head/kernel$"], "10001"),
    (("recurrent",), "00010"),
    (lambda layer: layer == "b", "00110"),
    (ts.exclude(), "11111"),
    (ts.exclude("recurrent"), "11101"),
    (ts.exclude("stem", "head"), "01110"),
    (ts.exclude(first=True), "01111"),
    (ts.exclude(last=True), "11110"),
    (ts.exclude("a/kernel", first=True, last=True), "00110"),
])
def test_choose(select, chosen):
    assert choose(select, PATHS, LAYERS) == [c == "1" for c in chosen]


def test_the_first_and_last_layer_are_left_out_with_all_their_kernels():
    assert choose(ts.exclude(first=True), PATHS[2:], LAYERS[2:]) == [False, False, True]
    assert choose(ts.exclude(last=True), PATHS[:4], LAYERS[:4]) == [True, True, False, False]


@pytest.mark.parametrize("select, error, message", [
    ("convolution", ValueError, r"pattern 'convolution' matches no kernel. The kernels are: "
                                r"stem/kernel, block/a/kernel"),
    (["stem", "nothing"], ValueError, "pattern 'nothing' matches no kernel"),
    (ts.exclude("nothing"), ValueError, "pattern 'nothing' matches no kernel"),
    (ts.exclude("kernel"), ValueError, r"Exclude\(.* leaves no kernel.*: stem/kernel"),
    (lambda layer: False, ValueError, "leaves no kernel to sparsify"),
    (3, TypeError, r"ts.exclude\(...\). Received: select=3"),
    ([], TypeError, r"Received: select=\[\]"),
    (["stem", 3], TypeError, r"Received: select=\['stem', 3\]"),
])
def test_messages(select, error, message):
    with pytest.raises(error, match=message):
        choose(select, PATHS, LAYERS)


def test_a_predicate_needs_layers():
    with pytest.raises(ValueError, match="predicate.*SparsityUpdate.*or select by regular"):
        choose(lambda layer: True, PATHS, [None] * len(PATHS))


def test_a_bad_pattern_is_refused_where_it_is_written():
    with pytest.raises(ValueError, match=r"'\(' is no regular expression"):
        ts.exclude("(")
    with pytest.raises(ValueError, match=r"'\(' is no regular expression"):
        choose("(", PATHS, LAYERS)


def nested():
    keras.backend.clear_session()  # names without numbers
    text = keras.Input((4,), dtype="int32")
    h = layers.Embedding(5, 4, name="tokens")(text)
    h = layers.MultiHeadAttention(2, 3, use_gate=True, name="attention")(h, h)
    h = layers.Bidirectional(layers.LSTM(3, return_sequences=True), name="both")(h)
    h = layers.TimeDistributed(layers.Dense(3, name="per_step"), name="steps")(h)
    h = layers.SimpleRNN(2, name="rnn")(h)
    block = keras.Input((2,))
    block = keras.Model(block, layers.Dense(3, name="dense")(block), name="block")
    tower = keras.Sequential([keras.Input((2,)), block, layers.Dense(4, name="dense")],
                             name="tower")
    return keras.Model(text, layers.Dense(2, name="head")(tower(h)), name="whole")


def test_paths():
    assert [f.kernel.path for f in find(nested())] == [
        "tokens/embeddings",
        "attention/query/kernel", "attention/key/kernel", "attention/value/kernel",
        "attention/gate/kernel", "attention/attention_output/kernel",
        "both/forward_lstm/kernel", "both/forward_lstm/recurrent_kernel",
        "both/backward_lstm/kernel", "both/backward_lstm/recurrent_kernel",
        "steps/per_step/kernel",
        "rnn/kernel", "rnn/recurrent_kernel",
        "tower/block/dense/kernel", "tower/dense/kernel",
        "head/kernel"]


def test_paths_are_the_same_when_sparse():
    model = nested()
    sparse = ts.sparsify(model, METHOD)
    assert [f.kernel for f in find(sparse)] == [f.kernel for f in find(model)]
    assert all(f.method == METHOD for f in find(sparse))


@pytest.mark.parametrize("select, paths", [
    ("recurrent", ["both/forward_lstm/recurrent_kernel", "both/backward_lstm/recurrent_kernel",
                   "rnn/recurrent_kernel"]),
    ("query|gate", ["attention/query/kernel", "attention/gate/kernel"]),
    (lambda layer: isinstance(layer, layers.MultiHeadAttention) and layer.name == "attention",
     [f"attention/{p}/kernel" for p in ("query", "key", "value", "gate", "attention_output")]),
    (lambda layer: isinstance(layer, layers.Dense) and layer.units == 3,
     ["steps/per_step/kernel", "tower/block/dense/kernel"]),
    (["^tower/dense", "forward_lstm/kernel"], ["both/forward_lstm/kernel", "tower/dense/kernel"]),
    (ts.exclude("attention|both|rnn|steps", first=True, last=True),
     ["tower/block/dense/kernel", "tower/dense/kernel"]),
])
def test_sparsify_takes_what_is_selected(select, paths):
    sparse = ts.sparsify(nested(), METHOD, select=select)
    assert [f.kernel.path for f in find(sparse) if f.method] == paths
