"""Every sparse layer against the Keras layer it stands for: same arguments, same numbers.

The oracle is Keras itself: with a mask of ones a sparse layer equals the Keras layer with the same
weights, with any mask the Keras layer whose kernel is theta * mask. Both bit for bit, eagerly and
compiled, because multiplying by 0 or 1 is exact and everything after it is the same operation.
"""

import inspect

import keras
import numpy as np
import pytest
from keras import layers, ops

import tf_sparsity as ts
from tf_sparsity.kernels import find
from tf_sparsity.layers import REPLACEMENTS, SparseLayer
from tf_sparsity.layers.recurrent import SparseLSTMCell

pytestmark = pytest.mark.any_backend

METHOD = ts.MagnitudePruning(ts.ConstantSparsity(0.5, 0))
SHARED = {"name": "my_layer", "trainable": False}


def regularized(*names, activity=True):
    """Non-default initializers, regularizers and constraints for the arrays in `names`."""
    arguments = {"activity_regularizer": "l2"} if activity else {}
    for name in names:
        arguments |= {f"{name}_initializer": keras.initializers.RandomNormal(seed=1),
                      f"{name}_regularizer": keras.regularizers.L1(1e-3),
                      f"{name}_constraint": keras.constraints.NonNeg()}
    return arguments


CONV = regularized("kernel", "bias") | {"activation": "relu"}
DEPTHWISE = regularized("depthwise", "bias") | {"activation": "relu"}
SEPARABLE = regularized("pointwise") | DEPTHWISE
RNN = regularized("kernel", "recurrent", "bias") | {"activation": "softsign"}
GATED = RNN | {"recurrent_activation": "hard_sigmoid", "use_cudnn": False}
SEQUENCES = {"return_sequences": True, "return_state": True, "go_backwards": True}
ATTENTION = regularized("kernel", "bias")
FLOATS = np.random.default_rng(0).normal(size=2 * 4 * 5 * 6 * 4).astype("float32")


def x(*shape):
    """A fixed input of this shape, the batch size of 2 in front."""
    return FLOATS[:2 * np.prod(shape)].reshape(2, *shape)


IDS = np.array([[1, 0, 3], [2, 2, 0]])

# (Keras class, constructor arguments, inputs, arguments of the call)
ROWS = [
    (layers.Dense, dict(units=3), [x(4)], {}),
    (layers.Dense, CONV | SHARED | dict(units=3, use_bias=False), [x(2, 4)], {}),
    (layers.Dense, CONV | dict(units=3, dtype="mixed_bfloat16"), [x(4)], {}),
    (layers.EinsumDense, dict(equation="abc,cd->abd", output_shape=(None, 3)), [x(2, 4)], {}),
    (layers.EinsumDense, regularized("kernel", "bias") | SHARED | dict(
        equation="...x,xyz->...yz", output_shape=(2, 3), bias_axes="z", activation="relu"),
     [x(2, 4)], {}),
    (layers.Conv1D, dict(filters=4, kernel_size=2), [x(6, 4)], {}),
    (layers.Conv1D, CONV | SHARED | dict(filters=4, kernel_size=3, padding="causal",
                                         dilation_rate=2, groups=2), [x(6, 4)], {}),
    (layers.Conv1D, dict(filters=4, kernel_size=3, padding="same", strides=2, use_bias=False),
     [x(6, 4)], {}),
    (layers.Conv2D, dict(filters=4, kernel_size=2), [x(5, 6, 4)], {}),
    (layers.Conv2D, CONV | SHARED | dict(filters=4, kernel_size=(3, 2), padding="same",
                                         dilation_rate=2, groups=1), [x(5, 6, 4)], {}),
    (layers.Conv2D, dict(filters=4, kernel_size=3, strides=(2, 1), groups=2, use_bias=False),
     [x(5, 6, 4)], {}),
    (layers.Conv3D, dict(filters=3, kernel_size=2), [x(3, 3, 3, 2)], {}),
    (layers.Conv3D, CONV | SHARED | dict(filters=2, kernel_size=(1, 2, 2), padding="same",
                                         strides=2, groups=2), [x(3, 3, 3, 2)], {}),
    (layers.Conv3D, dict(filters=2, kernel_size=2, dilation_rate=2, use_bias=False),
     [x(3, 3, 3, 2)], {}),
    (layers.DepthwiseConv1D, dict(kernel_size=2), [x(6, 4)], {}),
    (layers.DepthwiseConv1D, DEPTHWISE | SHARED | dict(kernel_size=3, padding="same", strides=2,
                                                       depth_multiplier=2), [x(6, 4)], {}),
    (layers.DepthwiseConv1D, dict(kernel_size=2, dilation_rate=2, use_bias=False), [x(6, 4)], {}),
    (layers.DepthwiseConv2D, dict(kernel_size=2), [x(5, 6, 4)], {}),
    (layers.DepthwiseConv2D, DEPTHWISE | SHARED | dict(
        kernel_size=3, padding="same", strides=2, depth_multiplier=2), [x(5, 6, 4)], {}),
    (layers.DepthwiseConv2D, dict(kernel_size=2, dilation_rate=2, use_bias=False),
     [x(5, 6, 4)], {}),
    (layers.SeparableConv1D, dict(filters=3, kernel_size=2), [x(6, 4)], {}),
    (layers.SeparableConv1D, SEPARABLE | SHARED | dict(
        filters=3, kernel_size=3, padding="same", strides=2, depth_multiplier=2), [x(6, 4)], {}),
    (layers.SeparableConv1D, dict(filters=3, kernel_size=2, dilation_rate=2, use_bias=False),
     [x(6, 4)], {}),
    (layers.SeparableConv2D, dict(filters=3, kernel_size=2), [x(5, 6, 4)], {}),
    (layers.SeparableConv2D, SEPARABLE | SHARED | dict(
        filters=3, kernel_size=3, padding="same", strides=2, depth_multiplier=2),
     [x(5, 6, 4)], {}),
    (layers.SeparableConv2D, dict(filters=3, kernel_size=2, dilation_rate=2, use_bias=False),
     [x(5, 6, 4)], {}),
    (layers.Conv1DTranspose, dict(filters=3, kernel_size=2), [x(6, 4)], {}),
    (layers.Conv1DTranspose, CONV | SHARED | dict(
        filters=3, kernel_size=3, padding="same", strides=2, output_padding=1), [x(6, 4)], {}),
    (layers.Conv1DTranspose, dict(filters=3, kernel_size=2, dilation_rate=2, use_bias=False),
     [x(6, 4)], {}),
    (layers.Conv2DTranspose, dict(filters=3, kernel_size=2), [x(5, 6, 4)], {}),
    (layers.Conv2DTranspose, CONV | SHARED | dict(
        filters=3, kernel_size=3, padding="same", strides=(2, 2), output_padding=1),
     [x(5, 6, 4)], {}),
    (layers.Conv2DTranspose, dict(filters=3, kernel_size=2, dilation_rate=(2, 2),
                                  use_bias=False), [x(5, 6, 4)], {}),
    (layers.Conv3DTranspose, dict(filters=3, kernel_size=2), [x(3, 3, 3, 2)], {}),
    (layers.Conv3DTranspose, CONV | SHARED | dict(
        filters=3, kernel_size=3, padding="same", strides=2, output_padding=1),
     [x(3, 3, 3, 2)], {}),
    (layers.Conv3DTranspose, dict(filters=3, kernel_size=2, dilation_rate=(1, 1, 1),
                                  use_bias=False), [x(3, 3, 3, 2)], {}),
    (layers.Embedding, dict(input_dim=5, output_dim=3), [IDS], {}),
    (layers.Embedding, regularized("embeddings", activity=False) | SHARED | dict(
        input_dim=5, output_dim=3, mask_zero=True, dtype="mixed_bfloat16"), [IDS], {}),
    (layers.Embedding, dict(input_dim=5, output_dim=3, weights=x(5, 3)[0]), [IDS], {}),
    (layers.ReversibleEmbedding, dict(input_dim=5, output_dim=3), [IDS], {}),
    (layers.ReversibleEmbedding, dict(input_dim=5, output_dim=3), [x(3, 3)], {"reverse": True}),
    (layers.ReversibleEmbedding, regularized("embeddings", activity=False) | SHARED | dict(
        input_dim=5, output_dim=3, mask_zero=True, tie_weights=False), [IDS], {}),
    (layers.ReversibleEmbedding, dict(input_dim=5, output_dim=3, tie_weights=False),
     [x(3, 3)], {"reverse": True}),
    (layers.ReversibleEmbedding, dict(input_dim=5, output_dim=3, reverse_dtype="float32",
                                      logit_soft_cap=0.5, dtype="mixed_bfloat16"),
     [x(3, 3)], {"reverse": True}),
    (layers.ReversibleEmbedding, dict(input_dim=5, output_dim=3, dtype="mixed_bfloat16"),
     [x(3, 3)], {"reverse": True}),
    (layers.LSTM, dict(units=3), [x(4, 5)], {}),
    (layers.LSTM, GATED | SEQUENCES | SHARED | dict(units=3, unroll=True, implementation=1),
     [x(4, 5)], {}),
    (layers.LSTM, dict(units=3, use_bias=False, dropout=0.5, recurrent_dropout=0.5, seed=3),
     [x(4, 5)], {"training": True}),
    (layers.LSTM, dict(units=3, unit_forget_bias=False, stateful=True, dtype="mixed_bfloat16"),
     [x(4, 5)], {"mask": np.array([[1, 1, 0, 0], [1, 1, 1, 0]], bool)}),
    (layers.GRU, dict(units=3), [x(4, 5)], {}),
    (layers.GRU, GATED | SEQUENCES | SHARED | dict(units=3, unroll=True, implementation=1),
     [x(4, 5)], {}),
    (layers.GRU, dict(units=3, use_bias=False, dropout=0.5, recurrent_dropout=0.5, seed=3),
     [x(4, 5)], {"training": True}),
    (layers.GRU, dict(units=3, reset_after=False, stateful=True, dtype="mixed_bfloat16"),
     [x(4, 5)], {"mask": np.array([[1, 1, 0, 0], [1, 1, 1, 0]], bool)}),
    (layers.SimpleRNN, dict(units=3), [x(4, 5)], {}),
    (layers.SimpleRNN, RNN | SEQUENCES | SHARED | dict(units=3, unroll=True), [x(4, 5)], {}),
    (layers.SimpleRNN, dict(units=3, use_bias=False, dropout=0.5, recurrent_dropout=0.5, seed=3),
     [x(4, 5)], {"training": True}),
    (layers.SimpleRNN, dict(units=3, stateful=True), [x(4, 5)],
     {"mask": np.array([[1, 1, 0, 0], [1, 1, 1, 0]], bool)}),
    (layers.MultiHeadAttention, dict(num_heads=2, key_dim=3), [x(4, 5), x(4, 5)], {}),
    (layers.MultiHeadAttention, ATTENTION | SHARED | dict(
        num_heads=2, key_dim=3, value_dim=2, output_shape=7, use_gate=True, flash_attention=False),
     [x(4, 5), x(3, 5), x(3, 6)], {"return_attention_scores": True}),
    (layers.MultiHeadAttention, dict(num_heads=2, key_dim=3, use_bias=False, dropout=0.5, seed=3,
                                     sliding_window=2),
     [x(4, 5), x(4, 5)], {"use_causal_mask": True, "training": True}),
    (layers.MultiHeadAttention, dict(num_heads=2, key_dim=3, attention_axes=(2,)),
     [x(2, 3, 4), x(2, 3, 4)], {}),
    (layers.GroupQueryAttention, dict(head_dim=3, num_query_heads=4, num_key_value_heads=2),
     [x(4, 5), x(4, 5)], {}),
    (layers.GroupQueryAttention, ATTENTION | SHARED | dict(
        head_dim=3, num_query_heads=4, num_key_value_heads=2, use_gate=True, sliding_window=2,
        flash_attention=False), [x(4, 5), x(4, 5)], {"return_attention_scores": True}),
    (layers.GroupQueryAttention, dict(head_dim=3, num_query_heads=2, num_key_value_heads=2,
                                      use_bias=False, dropout=0.5, seed=3),
     [x(4, 5), x(4, 5)], {"use_causal_mask": True, "training": True}),
]

# Constructor arguments without a row, and why.
NOT_IN_A_ROW = {
    "lora_rank": "refused: see test_lora_and_quantization_are_refused",
    "lora_alpha": "as lora_rank",
    "quantization_config": "refused: see test_lora_and_quantization_are_refused",
    "gptq_unpacked_column_size": "as quantization_config",
    "data_format": "channels_first: see test_channels_first, TensorFlow's CPU cannot run it",
}
IDENTIFIERS = [f"{cls.__name__}-{i}" for i, (cls, *_) in enumerate(ROWS)]


def copy_of(arguments):
    """Layers must not share initializers: Keras counts their calls."""
    return {k: keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(v))
            if not isinstance(v, (np.ndarray, tuple)) else v for k, v in arguments.items()}


def compiled(layer, arguments):
    """The layer's call as `fit` compiles it."""
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        return tf.function(lambda *inputs: layer(*inputs, **arguments))
    import jax

    @jax.jit
    def function(arrays, *inputs):  # not stateless_call: it skips the casts of __call__
        with keras.StatelessScope(zip(layer.variables, arrays)) as scope:
            outputs = layer(*inputs, **arguments)
        return outputs, [scope.get_current_value(v) for v in layer.variables]

    def call(*inputs):
        outputs, arrays = function([v.value for v in layer.variables], *inputs)
        for variable, array in zip(layer.variables, arrays):
            if array is not None:
                variable.assign(array)
        return outputs

    return call


class Same:
    """Compares the outputs of two layers, eagerly and compiled, bit for bit.

    Each layer has its own seed generators and recurrent states, which must move alike.
    """

    def __init__(self, one, other, inputs, arguments):
        self.layers, self.inputs = (one, other), inputs
        self.runs = [[lambda *a, layer=layer: layer(*a, **arguments) for layer in self.layers],
                     [compiled(layer, arguments) for layer in self.layers]]

    def check(self):
        for run in self.runs:
            for layer in self.layers:
                if getattr(layer, "stateful", False):
                    layer.reset_state()
            for one, two in zip(*[keras.tree.flatten(function(*self.inputs)) for function in run],
                                strict=True):
                assert one.dtype == two.dtype
                np.testing.assert_array_equal(ops.convert_to_numpy(one),
                                              ops.convert_to_numpy(two))


def sparse_of(layer, inputs, arguments, method=METHOD):
    """The sparse counterpart with the layer's weights, by the weights of the dense layer."""
    cls = REPLACEMENTS[type(layer)]
    config = {**layer.get_config(), **cls.unsaved_config(layer), "method": method}
    sparse = cls.from_config(config)
    sparse(*inputs, **{**arguments, "training": False} if "training" in arguments else arguments)
    copy_arrays(layer, sparse)
    for one in sparse._flatten_layers():
        if isinstance(one, SparseLayer):
            one.bound = True  # what SparsityUpdate does; here the call with training=True
    return sparse


def copy_arrays(layer, sparse):
    for one, two in zip(layer._flatten_layers(), sparse._flatten_layers(), strict=True):
        own = two._dense_variables() if isinstance(two, SparseLayer) else (
            two._trainable_variables + two._non_trainable_variables)
        for a, b in zip(one._trainable_variables + one._non_trainable_variables, own, strict=True):
            assert a.name == b.name
            b.assign(a)
        for a, b in zip(one._seed_generators, two._seed_generators):
            b.state.assign(a.state)


def losses(layer, inputs, call_arguments):
    """The sum of regularization and activity losses, with theta as it is after pruning."""
    for owner in owners(layer):
        for name in owner.state:
            owner.theta(name).assign(owner.effective(name))
    layer(*inputs, **call_arguments)
    return [float(loss) for loss in layer.losses]


def owners(layer):
    return [l for l in layer._flatten_layers() if isinstance(l, SparseLayer)]


def set_masks(sparse, layer):
    """Random masks for the sparse layer; theta * mask becomes the kernel of the Keras layer."""
    random = np.random.default_rng(1)
    for one, two in zip(layer._flatten_layers(), sparse._flatten_layers(), strict=True):
        if isinstance(two, SparseLayer):
            for name, state in two.state.items():
                mask = random.integers(0, 2, state["mask"].shape).astype("float32")
                state["mask"].assign(mask)
                kernel = next(v for v in one._trainable_variables if v.name == name)
                kernel.assign(ops.convert_to_numpy(kernel) * mask)


@pytest.mark.parametrize("cls", REPLACEMENTS, ids=lambda cls: cls.__name__)
def test_signature(cls):
    """Keras' parameters, in its order and with its defaults, and then `method`."""
    def named(signature):
        return [(p.name, p.kind, p.default) for p in signature.parameters.values()]

    ours = named(inspect.signature(REPLACEMENTS[cls]))
    method = ("method", inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.empty)
    assert method in ours
    ours.remove(method)
    assert ours == named(inspect.signature(cls))


def test_every_layer_and_argument_has_a_row():
    assert {cls for cls, *_ in ROWS} == set(REPLACEMENTS)
    for cls in REPLACEMENTS:
        parameters = {p.name: p.default for p in inspect.signature(cls).parameters.values()
                      if p.kind is not inspect.Parameter.VAR_KEYWORD}
        changed = {name for c, arguments, *_ in ROWS if c is cls
                   for name, value in arguments.items()
                   if name not in parameters or value is not parameters[name]}
        assert set(parameters) - changed <= set(NOT_IN_A_ROW), cls
        assert {"name", "trainable"} <= changed, cls


@pytest.mark.parametrize("cls, arguments, inputs, call_arguments", ROWS, ids=IDENTIFIERS)
def test_equals_keras(cls, arguments, inputs, call_arguments):
    layer = cls(**copy_of(arguments))
    try:
        layer(*inputs, **call_arguments)
    except Exception as error:
        # TensorFlow turns oneDNN on with AVX-512 only; without, its CPU has no such kernel.
        if "dilation rates larger than 1" not in str(error):
            raise
        with pytest.raises(type(error), match="dilation rates larger than 1"):
            sparse_of(layer, inputs, call_arguments)
        pytest.skip("Keras' own layer does not run here: set TF_ENABLE_ONEDNN_OPTS=1")
    sparse = sparse_of(layer, inputs, call_arguments)
    assert type(sparse) is REPLACEMENTS[cls] and sparse.name == layer.name
    assert sparse.trainable == layer.trainable
    same = Same(sparse, layer, inputs, call_arguments)
    same.check()
    set_masks(sparse, layer)
    same.check()
    assert losses(layer, inputs, call_arguments) == losses(sparse, inputs, call_arguments)


@pytest.mark.parametrize("cls, arguments, inputs, call_arguments", ROWS, ids=IDENTIFIERS)
def test_config_round_trip(cls, arguments, inputs, call_arguments):
    sparse = REPLACEMENTS[cls](**copy_of(arguments), method=METHOD)
    config = sparse.get_config()
    assert REPLACEMENTS[cls].from_config(sparse.get_config()).get_config() == config
    for key, value in cls(**copy_of({**arguments, "name": sparse.name})).get_config().items():
        if key != "seed" or value is not None:
            assert config[key] == value, key


@pytest.mark.parametrize("cls, arguments, shape", [
    (layers.Conv1D, dict(filters=4, kernel_size=2, padding="causal", groups=2), (4, 6)),
    (layers.Conv2D, dict(filters=4, kernel_size=2), (4, 5, 6)),
    (layers.Conv3D, dict(filters=3, kernel_size=2), (2, 3, 3, 3)),
    (layers.DepthwiseConv1D, dict(kernel_size=2), (4, 6)),
    (layers.DepthwiseConv2D, dict(kernel_size=2), (4, 5, 6)),
    (layers.SeparableConv1D, dict(filters=3, kernel_size=2), (4, 6)),
    (layers.SeparableConv2D, dict(filters=3, kernel_size=2), (4, 5, 6)),
    (layers.Conv1DTranspose, dict(filters=3, kernel_size=2), (4, 6)),
    (layers.Conv2DTranspose, dict(filters=3, kernel_size=2), (4, 5, 6)),
    (layers.Conv3DTranspose, dict(filters=3, kernel_size=2), (2, 3, 3, 3)),
], ids=lambda v: getattr(v, "__name__", None))
def test_channels_first(cls, arguments, shape):
    """Runs on JAX; on TensorFlow's CPU both layers refuse, which is what has to be the same."""
    layer = cls(data_format="channels_first", **arguments)
    inputs = [x(*shape)]
    layer.build(inputs[0].shape)
    sparse = sparse_built(layer, inputs[0].shape)
    try:
        layer(*inputs)
    except Exception:  # noqa: BLE001  TensorFlow's message depends on the kernel
        with pytest.raises(Exception):
            sparse(*inputs)
        return
    set_masks(sparse, layer)
    Same(sparse, layer, inputs, {}).check()


def sparse_built(layer, *shapes, method=METHOD):
    cls = REPLACEMENTS[type(layer)]
    sparse = cls.from_config({**layer.get_config(), "method": method})
    sparse.build(*shapes)
    copy_arrays(layer, sparse)
    return sparse


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16", "bfloat16", "float64"])
@pytest.mark.parametrize("cls, arguments, inputs", [
    (layers.Dense, dict(units=3), [x(4)]),
    (layers.Conv2D, dict(filters=3, kernel_size=2), [x(5, 6, 4)]),
    (layers.SeparableConv2D, dict(filters=3, kernel_size=2), [x(5, 6, 4)]),
    (layers.Embedding, dict(input_dim=5, output_dim=3), [IDS]),
    (layers.GRU, dict(units=3, recurrent_initializer="glorot_uniform"), [x(4, 5)]),
    (layers.MultiHeadAttention, dict(num_heads=2, key_dim=3), [x(4, 5), x(4, 5)]),
], ids=lambda v: getattr(v, "__name__", None))
def test_dtype_policies(cls, arguments, inputs, policy):
    if policy == "float64" and keras.backend.backend() == "jax":
        pytest.skip("JAX has no float64 unless it is switched on")
    if policy == "mixed_float16" and cls is layers.MultiHeadAttention and (
            keras.backend.backend() == "jax"):
        pytest.skip("Keras' attention in float16 does not run on JAX's CPU")
    layer = cls(**arguments, dtype=policy)
    layer(*inputs)
    sparse = sparse_of(layer, inputs, {})
    for owner in owners(sparse):
        for name, state in owner.state.items():
            wide = "float64" if policy == "float64" else "float32"
            assert state["mask"].dtype == wide
            assert owner.theta(name).dtype == ("bfloat16" if policy == "bfloat16" else wide)
            assert keras.backend.standardize_dtype(owner.effective(name).dtype) == wide
    set_masks(sparse, layer)
    Same(sparse, layer, inputs, {}).check()


def test_kernel_reads_as_the_effective_weight_and_theta_as_the_latent_one():
    layer = ts.layers.SparseDense(2, method=METHOD)
    with pytest.raises(AttributeError, match="Build layer '.*' before reading `kernel`"):
        layer.kernel
    layer.build((None, 2))
    layer.theta("kernel").assign([[1.0, 2.0], [3.0, 4.0]])
    layer.state["kernel"]["mask"].assign([[1, 0], [0, 1]])
    np.testing.assert_array_equal(ops.convert_to_numpy(layer.kernel), [[1, 0], [0, 4]])
    np.testing.assert_array_equal(ops.convert_to_numpy(layer.theta("kernel")), [[1, 2], [3, 4]])
    assert layer.theta("kernel") is layer.trainable_variables[0]


@pytest.mark.parametrize("cls, arguments, inputs, name, others", [
    (layers.LSTM, dict(units=3), [x(4, 5)], "recurrent_kernel", ["kernel"]),
    (layers.SeparableConv2D, dict(filters=3, kernel_size=2), [x(5, 6, 4)], "pointwise_kernel",
     ["depthwise_kernel"]),
    (layers.SeparableConv1D, dict(filters=3, kernel_size=2), [x(5, 6)], "depthwise_kernel",
     ["pointwise_kernel"]),
    (layers.MultiHeadAttention, dict(num_heads=2, key_dim=3), [x(4, 5), x(4, 5)], "query/kernel",
     ["key/kernel", "value/kernel", "attention_output/kernel"]),
], ids=lambda v: getattr(v, "__name__", None))
def test_one_kernel_of_several(cls, arguments, inputs, name, others):
    layer = cls(**arguments)
    layer(*inputs)
    sparse = sparse_of(layer, inputs, {}, method={name: METHOD})
    assert [list(o.state) for o in owners(sparse)] == [[name.split("/")[-1]]]
    set_masks(sparse, layer)
    Same(sparse, layer, inputs, {}).check()
    config = sparse.get_config()
    assert list(config["method"]) == [name]
    assert type(sparse).from_config(config).methods == {name: METHOD}


def test_method_argument_messages():
    with pytest.raises(TypeError, match=r"a dict \{kernel name: method\}. Received: 0.5"):
        ts.layers.SparseDense(2, method=0.5)
    with pytest.raises(ValueError, match=r"entries for \['kernels'\]; the kernels of this layer "
                                         r"are \['kernel'\]"):
        ts.layers.SparseDense(2, method={"kernels": METHOD})
    with pytest.raises(ValueError, match=r"entries for \['output/kernel'\]"):
        ts.layers.SparseMultiHeadAttention(2, 2, method={"output/kernel": METHOD})
    with pytest.raises(TypeError, match="method"):
        ts.layers.SparseDense(2)


def test_lora_and_quantization_are_refused():
    layer = ts.layers.SparseDense(2, method=METHOD)
    layer.build((None, 4))
    with pytest.raises(ValueError, match="is sparsified; LoRA .* ts.strip"):
        layer.enable_lora(2)
    with pytest.raises(ValueError, match="cannot be quantized in place.*ts.strip"):
        layer.quantize("int8")
    with pytest.raises(ValueError, match="LoRA"):
        ts.layers.SparseDense(2, lora_rank=2, method=METHOD).build((None, 4))
    with pytest.raises(ValueError, match="quantiz"):
        ts.layers.SparseDense(2, dtype="int8_from_float32", method=METHOD).build((None, 4))


def test_training_without_an_updater_raises_and_predicting_does_not():
    layer = ts.layers.SparseDense(2, method=METHOD)
    layer(x(4), training=False)
    with pytest.raises(ValueError, match=r"ts.callbacks.SparsityUpdate\(\)\] to fit; in a custom "
                                         r"loop call ts.update\(model\)"):
        layer(x(4), training=True)


@pytest.mark.parametrize("cls, arguments, inputs, call_arguments",
                         [row for i, row in enumerate(ROWS) if i == 0 or ROWS[i - 1][0] != row[0]],
                         ids=[cls.__name__ for cls in REPLACEMENTS and dict.fromkeys(
                             row[0] for row in ROWS)])
def test_gradients_are_masked(cls, arguments, inputs, call_arguments):
    layer = cls(**arguments)
    layer(*inputs, **call_arguments)
    sparse = sparse_of(layer, inputs, call_arguments)
    set_masks(sparse, layer)
    ours = gradients(sparse, inputs)
    for owner in owners(sparse):
        for name, state in owner.state.items():
            mask = ops.convert_to_numpy(state["mask"])
            gradient = ours[id(owner.theta(name))]
            assert not gradient[mask == 0].any()
            assert gradient[mask == 1].any()


def gradients(layer, inputs):
    """{id(variable): d sum(output ** 2) / d variable}"""
    variables = layer.trainable_variables
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        with tf.GradientTape() as tape:
            loss = ops.sum(layer(*inputs, training=True) ** 2)
        found = [tf.convert_to_tensor(g) for g in tape.gradient(loss, variables)]
    else:
        import jax

        rest = [v.value for v in layer.non_trainable_variables]
        found = jax.grad(lambda t: ops.sum(
            layer.stateless_call(t, rest, *inputs, training=True)[0] ** 2))(
                [v.value for v in variables])
    return {id(v): ops.convert_to_numpy(g) for v, g in zip(variables, found)}


class Noisy(ts.ContinuousSparsification):
    """Tells training from evaluation: theta in training, 0 in evaluation."""

    needs_update = False

    def weight(self, theta, state, *, training, seed=None):
        return theta * (1.0 if training else 0.0)


def test_a_cell_in_a_plain_rnn_trains_with_the_training_weight():
    """keras.layers.RNN reads `cell.kernel` itself, outside of our recurrent layers."""
    cell = SparseLSTMCell(3, method=Noisy(10))
    layer = layers.RNN(cell)
    other = layers.RNN(layers.LSTMCell(3))
    layer(x(4, 5)), other(x(4, 5))
    for variable, source in zip(cell._dense_variables(), other.weights, strict=True):
        variable.assign(source)
    np.testing.assert_array_equal(*[ops.convert_to_numpy(l(x(4, 5), training=True))
                                    for l in (layer, other)])
    assert not ops.convert_to_numpy(layer(x(4, 5), training=False)).any()


# ---- saving


@keras.saving.register_keras_serializable(package="test")
class Random(Noisy):
    """Draws a number in each training call."""

    needs_seed = True

    def weight(self, theta, state, *, training, seed=None):
        return theta * keras.random.uniform((), seed=seed) if training else theta


def test_the_seed_of_a_random_method_is_saved(tmp_path):
    def training_outputs(model):
        return [ops.convert_to_numpy(model(x(3), training=True)) for _ in range(2)]

    model = keras.Sequential([keras.Input((3,)), ts.layers.SparseDense(2, method=Random(10))])
    training_outputs(model)
    assert {"kernel", "kernel_beta", "kernel_s", "method_seed"} < set(
        saved(tmp_path, model)["dense"])
    model.save(tmp_path / "m.keras")
    after = training_outputs(model)
    assert not np.array_equal(*after)
    loaded = keras.saving.load_model(tmp_path / "m.keras")
    np.testing.assert_array_equal(training_outputs(loaded), after)


def test_a_random_method_on_an_embedding_with_weights():
    table = x(5, 3)[0]
    layer = ts.layers.SparseEmbedding(5, 3, weights=table, method=Random(10))
    np.testing.assert_array_equal(ops.convert_to_numpy(layer.embeddings), table)
    assert not np.array_equal(*[ops.convert_to_numpy(layer(IDS, training=True))
                                for _ in range(2)])


def saved(tmp_path, model):
    """Variables by layer as the weight file holds them."""
    import h5py

    model.save_weights(tmp_path / "w.weights.h5")
    with h5py.File(tmp_path / "w.weights.h5") as file:
        return {name: sorted(group["vars"]) for name, group in file["layers"].items()}


def everything():
    """A model with most kinds of sparse layers."""
    image = keras.Input((6, 6, 2))
    text = keras.Input((4,), dtype="int32")
    a = layers.SeparableConv2D(3, 2)(layers.Conv2D(2, 2)(image))
    a = layers.GlobalAveragePooling2D()(layers.BatchNormalization()(a))
    b = layers.Embedding(5, 4)(text)
    b = layers.MultiHeadAttention(2, 3, dropout=0.1)(b, b)
    b = layers.Bidirectional(layers.LSTM(3, return_sequences=True))(b)
    b = layers.GRU(2)(layers.TimeDistributed(layers.Dense(3))(b))
    inner = keras.Sequential([keras.Input((5,)), layers.Dense(4), layers.Dropout(0.5)])
    return keras.Model([image, text], layers.Dense(2)(inner(layers.Concatenate()([a, b]))))


def outputs(model):
    return ops.convert_to_numpy(model([x(6, 6, 2), np.array([[1, 2, 3, 4], [4, 0, 0, 1]])]))


def test_state_is_saved_by_name(tmp_path):
    model = keras.Sequential([keras.Input((3,)), layers.Dense(2), layers.LayerNormalization()])
    assert saved(tmp_path, ts.sparsify(model, METHOD)) == {
        "dense": ["bias", "kernel", "kernel_mask", "sparsity_clock"],
        "layer_normalization": ["0", "1"]}


def test_keras_file_round_trip(tmp_path):
    model = ts.sparsify(everything(), METHOD)
    ts.update(model)
    model.save(tmp_path / "m.keras")
    loaded = keras.saving.load_model(tmp_path / "m.keras")
    for one, two in zip(model.weights, loaded.weights, strict=True):
        assert one.name == two.name
        np.testing.assert_array_equal(ops.convert_to_numpy(one), ops.convert_to_numpy(two))
    np.testing.assert_array_equal(outputs(model), outputs(loaded))


@pytest.mark.parametrize("select", [None, "recurrent_kernel", "query|conv2d/kernel",
                                    ["depthwise", "sequential"]])
def test_a_dense_weight_file_loads(tmp_path, select):
    dense, other = everything(), everything()
    dense.save_weights(tmp_path / "dense.weights.h5")
    sparse = ts.sparsify(other, METHOD, select=select)
    sparse.load_weights(tmp_path / "dense.weights.h5")
    np.testing.assert_array_equal(outputs(dense), outputs(sparse))


def test_set_weights_takes_those_of_the_dense_layer():
    dense = layers.Dense(2)
    dense.build((None, 3))
    sparse = ts.layers.SparseDense(2, method=METHOD)
    sparse.build((None, 3))
    sparse.set_weights(dense.get_weights())
    np.testing.assert_array_equal(*[ops.convert_to_numpy(l.kernel) for l in (dense, sparse)])
    sparse.set_weights(sparse.get_weights())
    with pytest.raises(ValueError, match="weights"):
        sparse.set_weights(dense.get_weights()[:1])


def test_messages_for_weight_files_that_do_not_fit(tmp_path):
    def model(use_bias=True, units=2):
        return keras.Sequential([keras.Input((3,)),
                                 layers.Dense(units, use_bias=use_bias, name="d")])

    path = tmp_path / "w.weights.h5"
    model(use_bias=False).save_weights(path)
    with pytest.raises(ValueError, match=r"'d' has the 2 dense variables \['kernel', 'bias'\]; "
                                         "the file holds 1"):
        ts.sparsify(model(), METHOD).load_weights(path)
    model(units=3).save_weights(path)
    with pytest.raises(ValueError, match="shape"):
        ts.sparsify(model(), METHOD).load_weights(path)
    ts.sparsify(model(), ts.ContinuousSparsification(10)).save_weights(path)
    with pytest.raises(ValueError, match=r"lacks \['kernel_mask'\] of layer 'd'.*sparsified with "
                                         "another method"):
        ts.sparsify(model(), METHOD).load_weights(path)


def test_kernels_are_named_by_role():
    keras.backend.clear_session()  # names without numbers
    found = {f.kernel.path: f.kernel.axes for f in find(everything())}
    assert found["conv2d/kernel"] == ("kh", "kw", "in", "out")
    assert found["separable_conv2d/depthwise_kernel"] == ("kh", "kw", "out", "out:mult")
    assert found["multi_head_attention/query/kernel"] == ("in", "out:head", "out")
    assert found["multi_head_attention/attention_output/kernel"] == ("in:head", "in", "out")
    assert found["embedding/embeddings"] == ("vocab", "out")
    assert found["bidirectional/forward_lstm/recurrent_kernel"] == ("in", "out")


# ---- looking inside


def test_inspect_gives_the_arrays_of_a_kernel():
    model = keras.Sequential([keras.Input((4,)), layers.Dense(3, use_bias=False, name="dense")])
    model.get_layer("dense").kernel.assign(np.full((4, 3), 0.5))
    model = ts.sparsify(model, ts.VariationalDropout(10, scale=2.0, threshold=1.0))
    now = model.get_layer("dense").inspect("kernel")
    assert set(now) == {"theta", "weight", "log_sigma2", "coefficient", "penalty", "threshold",
                        "log_alpha"}
    np.testing.assert_array_equal(now["theta"], now["weight"])
    np.testing.assert_allclose(now["log_alpha"], np.full((4, 3), -10 + 2 * np.log(2)), rtol=1e-6)
    assert now["coefficient"] == np.float32(0.2) and now["threshold"] == 1.0
    with pytest.raises(ValueError, match="no method for a kernel 'bias'; it has for .'kernel'.*"):
        model.get_layer("dense").inspect("bias")
