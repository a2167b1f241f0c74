"""What the package relies on inside Keras, one test each: a new Keras version fails here first.

Keras documents none of it. Each docstring says who needs it and why.
"""

import h5py
import keras
import numpy as np
import pytest
from keras import layers, ops
from keras.src.backend import get_autocast_scope, set_keras_mask
from keras.src.backend.common.global_state import get_global_attribute
from keras.src.models.functional import Functional, functional_like_constructor
from keras.src.saving.serialization_lib import SafeModeScope, in_safe_mode

from tf_sparsity.layers.attention import PROJECTIONS

pytestmark = pytest.mark.any_backend


def built(layer, *shapes):
    layer.build(*shapes)
    return layer


@pytest.mark.parametrize("layer, shape, names", [
    (layers.Dense(2), (None, 3), ["kernel", "bias"]),
    (layers.EinsumDense("ab,bc->ac", 2, bias_axes="c"), (None, 3), ["kernel", "bias"]),
    (layers.Conv2D(2, 1), (None, 3, 3, 3), ["kernel", "bias"]),
    (layers.Conv2DTranspose(2, 1), (None, 3, 3, 3), ["kernel", "bias"]),
    (layers.DepthwiseConv2D(1), (None, 3, 3, 3), ["kernel", "bias"]),
    (layers.SeparableConv2D(2, 1), (None, 3, 3, 3),
     ["depthwise_kernel", "pointwise_kernel", "bias"]),
    (layers.Embedding(3, 2), (None,), ["embeddings"]),
    (layers.ReversibleEmbedding(3, 2, tie_weights=False), (None,),
     ["embeddings", "reverse_embeddings"]),
    (layers.LSTMCell(2), (None, 3), ["kernel", "recurrent_kernel", "bias"]),
], ids=lambda v: type(v).__name__ if isinstance(v, keras.Layer) else None)
def test_names_and_order_of_variables(layer, shape, names):
    """kernels.py finds kernels by these names, `load_own_variables` reads a dense file in this
    order, and the attribute of a kernel is its name, with or without an underscore."""
    layer.build(shape)
    assert [v.name for v in layer._trainable_variables] == names
    assert layer._non_trainable_variables == []
    for name, variable in zip(names, layer._trainable_variables):
        assert layer.__dict__.get("_" + name, layer.__dict__.get(name)) is variable
    store = {}
    layer.save_own_variables(store)
    assert list(store) == [str(i) for i in range(len(names))]


def test_weight_files_address_layers_by_class_name(tmp_path):
    """Why a sparse class has the `__name__` of its Keras class: dense weight files load."""
    class Renamed(layers.Dense):
        pass

    Renamed.__name__ = "AnyName"
    model = keras.Sequential([keras.Input((2,)), Renamed(2, name="given")])
    model.save_weights(tmp_path / "w.weights.h5")
    with h5py.File(tmp_path / "w.weights.h5") as file:
        assert list(file["layers"]) == ["any_name"]


def test_the_instance_wraps_build_of_its_class():
    """`sparse_layer` replaces `build` on the class and adds variables at its end; Keras locks
    the layer after that, in a wrapper that it puts around `build` of each instance."""
    class Late(layers.Dense):
        def build(self, input_shape):
            super().build(input_shape)
            self.extra = self.add_weight(name="extra", shape=())

    layer = built(Late(2), (None, 3))
    assert [v.name for v in layer.weights] == ["kernel", "bias", "extra"]
    with pytest.raises(ValueError, match="cannot add new elements"):
        layer.later = layer.add_weight(name="later", shape=())


def test_tracker_untracks_and_replaces():
    """SparseRNN takes the dense cell out of the layer; SparseAttention exchanges projections of
    a layer that is built, hence locked, at the same place."""
    class Holder(layers.Layer):
        def __init__(self):
            super().__init__()
            self.a, self.b = layers.Dense(1), layers.Dense(2)

        def build(self, shape):
            self.b.build(shape)

    holder = built(Holder(), (None, 3))
    a, b, c = holder.a, holder.b, layers.Dense(3)
    holder._tracker.replace_tracked_value("layers", a, c)
    assert holder._layers == [c, b]
    holder = Holder()
    holder._tracker.untrack(holder.a)
    assert holder._layers == [holder.b]


def test_losses_are_collected_once_per_layer_from_get_own_losses():
    """The penalty of a slot enters the loss once per step, however often its layer is called."""
    class Penalized(layers.Dense):
        def _get_own_losses(self):
            return super()._get_own_losses() + [1.0]

    layer = Penalized(3)
    inputs = keras.Input((3,))
    model = keras.Model(inputs, layer(layer(inputs)))
    model(np.ones((2, 3)))
    assert model.losses == [1.0]


def test_seed_generators_of_a_layer():
    """Their states are copied by `sparsify` and saved by SparsityUpdate."""
    assert [type(s) for s in layers.Dropout(0.5)._seed_generators] == [keras.random.SeedGenerator]
    model = keras.Sequential([keras.Input((3,)), layers.Dropout(0.5), layers.GaussianNoise(1.0)])
    assert [len(l._seed_generators) for l in model.layers] == [1, 1]
    assert len(layers.LSTM(2, dropout=0.5).cell._seed_generators) == 1


def test_functional_models_are_told_from_subclassed_ones():
    """`is_graph`: only a model that its inputs and outputs define can be rebuilt."""
    class Named(keras.Model):
        """A custom train_step, say; the constructor is Keras'."""

    class Own(keras.Model):
        def __init__(self, units):
            inputs = keras.Input((2,))
            super().__init__(inputs, layers.Dense(units)(inputs))

    inputs = keras.Input((2,))
    named = Named(inputs, layers.Dense(1)(inputs))
    assert isinstance(named, Functional) and functional_like_constructor(type(named))
    assert isinstance(Own(1), Functional) and not functional_like_constructor(Own)
    assert not isinstance(keras.Sequential(), Functional)


def test_clone_model():
    """What convert.py adds to it: inputs keep their layers' names, `trainable` is copied, the
    copy of a compiled model is not compiled. It asks for each layer once, for a nested model
    like for any other layer."""
    inner = keras.Sequential([keras.Input((2,)), layers.Dense(2)])
    inputs = keras.Input((2,), name="given")
    model = keras.Model(inputs, inner(inner(inputs)))
    model.trainable = False
    asked = []

    def clone(layer):
        asked.append(layer)
        return layer

    tensors = keras.tree.map_structure(lambda t: t._keras_history.operation.output, model.input)
    copy = keras.models.clone_model(model, input_tensors=tensors, clone_function=clone)
    assert asked == [inner]
    assert [l.name for l in copy.layers] == ["given", inner.name]
    assert copy.name == model.name and copy._trainable and not copy.compiled


def test_safe_mode_is_a_scope():
    """A live model's lambdas are copied through its configuration."""
    before = in_safe_mode()
    with SafeModeScope(False):
        assert in_safe_mode() is False
    assert in_safe_mode() is before
    config = layers.Lambda(lambda t: t).get_config()
    with SafeModeScope(True), pytest.raises(ValueError, match="safe_mode=False"):
        layers.Lambda.from_config(dict(config))
    with SafeModeScope(False):
        layers.Lambda.from_config(dict(config))


def test_recurrent_layers_read_the_kernels_of_their_cell():
    """SparseRNN fixes the weights of a whole sequence by what `cell.kernel` reads as."""
    class Cell(layers.LSTMCell):
        reads = 0

        @property
        def kernel(self):
            type(self).reads += 1
            return self.__dict__.get("theta")

        @kernel.setter
        def kernel(self, value):
            self.__dict__["theta"] = value

    layers.RNN(Cell(2))(np.ones((1, 3, 2), "float32"))
    assert Cell.reads > 0


def test_what_the_configuration_of_a_recurrent_layer_leaves_out():
    """`unsaved_config` can go when this fails."""
    layer = layers.LSTM(2, implementation=1, use_cudnn=False)
    assert not {"implementation", "use_cudnn"} & set(layer.get_config())
    assert "implementation" not in layer.cell.get_config()
    assert (layer.cell.implementation, layer.use_cudnn) == (1, False)


@pytest.mark.parametrize("layer", [layers.MultiHeadAttention(2, 3, use_gate=True),
                                   layers.GroupQueryAttention(3, 2, 2, use_gate=True)],
                         ids=lambda layer: type(layer).__name__)
def test_projections_of_attention(layer):
    """SparseAttention replaces these attributes; their axis of heads is known by position."""
    layer.build((None, 4, 5), (None, 4, 5))
    for name, (attribute, head_axis) in PROJECTIONS.items():
        dense = layer.__dict__[attribute]
        assert type(dense) is layers.EinsumDense and dense.name == name
        assert dense._kernel.shape[head_axis] == 2
        assert dense.get_build_config()["input_shape"]
    assert "flash_attention" not in layer.get_config()
    assert layer._flash_attention is not True


def test_time_distributed_calls_the_layers_call():
    """`__call__` is passed over, so what a sparse layer does must be in `call`."""
    class Loud(layers.Dense):
        def __call__(self, *args, **kwargs):
            raise AssertionError("was called")

    layer = layers.TimeDistributed(built(Loud(2), (None, 3)))
    assert layer(np.ones((1, 4, 3), "float32")).shape == (1, 4, 2)


def test_causal_padding_helper():
    """SparseConv1D pads as Keras does."""
    layer = layers.Conv1D(1, 3, padding="causal", dilation_rate=2)
    assert layer._compute_causal_padding() == [[0, 0], [4, 0], [0, 0]]


def test_autocast():
    """A kernel made with autocast=False is read in float32 under a mixed policy, where others
    are read in the dtype that the scope of the running call names."""
    seen = {}

    class Reader(layers.Layer):
        def build(self, shape):
            self.narrow = self.add_weight(name="narrow", shape=())
            self.wide = self.add_weight(name="wide", shape=(), autocast=False)

        def call(self, x):
            seen.update(scope=get_autocast_scope().dtype,
                        narrow=ops.convert_to_tensor(self.narrow).dtype,
                        wide=ops.convert_to_tensor(self.wide).dtype)
            return x

    Reader(dtype="mixed_bfloat16")(np.ones((1, 2), "float32"))
    assert {k: keras.backend.standardize_dtype(v) for k, v in seen.items()} == {
        "scope": "bfloat16", "narrow": "bfloat16", "wide": "float32"}


def test_call_context_knows_the_training_argument_and_the_outermost_layer():
    """A cell's kernel that Keras reads by itself has the weight of the running call's mode."""
    seen = []

    class Inner(layers.Layer):
        def call(self, x):
            context = get_global_attribute("current_call_ctx")
            seen.append((context.get_value("training"), context.entry_layer))
            return x

    model = keras.Sequential([keras.Input((2,)), Inner()])
    seen.clear()
    model(np.ones((1, 2), "float32"), training=True)
    model(np.ones((1, 2), "float32"), training=False)
    assert [training for training, _ in seen] == [True, False]
    assert all(layer is model for _, layer in seen)
    assert get_global_attribute("current_call_ctx") is None


def test_nodes_keep_the_arguments_of_the_graph():
    """`training=True` in the graph is no sign of training."""
    inputs = keras.Input((2,))
    layer = layers.Dropout(0.5)
    layer(inputs, training=True)
    assert [node.arguments.kwargs.get("training") for node in layer._inbound_nodes] == [True]


def test_a_reversible_embedding_sets_its_mask_in_call():
    """compute_mask returns None there, because the reverse call has no mask."""
    layer = layers.ReversibleEmbedding(3, 2, mask_zero=True)
    y = layer(np.array([[1, 0]]))
    assert layer.compute_mask(np.array([[1, 0]])) is None
    np.testing.assert_array_equal(ops.convert_to_numpy(y._keras_mask), [[True, False]])
    set_keras_mask(y, None)


def test_preprocessing_layers_save_assets():
    """`sparsify` copies vocabularies through these two methods."""
    for name in ("save_assets", "load_assets"):
        assert hasattr(layers.StringLookup, name) and not hasattr(layers.Dense, name)
