"""Attention whose projections are SparseEinsumDense."""

import keras

from tf_sparsity.layers.base import read_methods, serialize_methods, sparse_layer
from tf_sparsity.layers.dense import SparseEinsumDense

# projection -> (attribute of the Keras layer, which axis of its kernel counts the heads)
PROJECTIONS = {"query": ("_query_dense", 1), "key": ("_key_dense", 1),
               "value": ("_value_dense", 1), "gate": ("_gate_dense", 1),
               "attention_output": ("_output_dense", 0)}


class SparseAttention:
    """Mixin: replaces the selected projections of a Keras attention layer once it is built."""

    KERNELS = {f"{name}/kernel": None for name in PROJECTIONS}

    def __init__(self, *args, method, **kwargs):
        self._methods = read_methods(method, self.KERNELS)
        super().__init__(*args, **kwargs)

    @property
    def methods(self):
        """{kernel name: method}; once they are built the projections have them."""
        own = {f"{name}/kernel": self.__dict__.get(attribute)
               for name, (attribute, _) in PROJECTIONS.items()}
        return {name: own[name].methods["kernel"] if isinstance(own[name], SparseEinsumDense)
                else method for name, method in self._methods.items()}

    def inspect(self, name):
        """That of a projection: `query/kernel` and so on."""
        if name not in self._methods:
            raise ValueError(f"Layer '{self.name}' has no method for a kernel {name!r}; it has for "
                             f"{sorted(self._methods)}.")
        attribute, _ = PROJECTIONS[name.split("/")[0]]
        return getattr(self, attribute).inspect("kernel")

    def after_build(self):
        for name, (attribute, head_axis) in PROJECTIONS.items():
            dense = self.__dict__.get(attribute)
            if dense is None or f"{name}/kernel" not in self._methods:
                continue
            sparse = SparseEinsumDense.from_config(
                {**dense.get_config(), "method": {"kernel": self._methods[f"{name}/kernel"]}})
            sparse.head_axis = head_axis
            sparse.build(dense.get_build_config()["input_shape"])
            sparse.theta("kernel").assign(dense.kernel)
            if dense.bias is not None:
                sparse.bias.assign(dense.bias)
            self._tracker.replace_tracked_value("layers", dense, sparse)
            setattr(self, attribute, sparse)

    @staticmethod
    def unsaved_config(layer):
        return {"flash_attention": layer._flash_attention}

    def get_config(self):
        return {**super().get_config(), **self.unsaved_config(self),
                "method": serialize_methods(self.methods)}


@sparse_layer
class SparseMultiHeadAttention(SparseAttention, keras.layers.MultiHeadAttention):
    """`keras.layers.MultiHeadAttention` with sparse projections.

    The kernels are called `query/kernel`, `key/kernel`, `value/kernel`, `gate/kernel` (in,
    heads, key) and `attention_output/kernel` (heads, key, out).
    """


@sparse_layer
class SparseGroupQueryAttention(SparseAttention, keras.layers.GroupQueryAttention):
    """`keras.layers.GroupQueryAttention` with sparse projections, named as in
    SparseMultiHeadAttention."""
