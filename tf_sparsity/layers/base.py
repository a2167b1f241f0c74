"""SparseLayer: the layer host. A Keras layer that computes with `method.weight(theta, state)`.

Keras' own variable stays theta under its own name; the method's state are further variables of
the layer, so the trainer, checkpoints and distribution strategies know them. Reading
`layer.kernel` gives the effective weight of evaluation; `layer.theta("kernel")` the stored one.
"""

import contextlib
import functools
import inspect

import keras
import numpy as np
from keras import ops
from keras.src.backend.common.global_state import get_global_attribute

from tf_sparsity import train_step
from tf_sparsity.method import Kernel, Method, Slot


def read_methods(method, kernels):
    """`method` of a constructor or a configuration -> {kernel name: Method}."""
    if isinstance(method, Method):
        return {name: method for name in kernels}
    if not isinstance(method, dict):
        raise TypeError("method is a tf_sparsity method or a dict {kernel name: method}. "
                        f"Received: {method!r}")
    if "class_name" in method:
        return read_methods(keras.saving.deserialize_keras_object(method), kernels)
    unknown = sorted(set(method) - set(kernels))
    if unknown:
        raise ValueError(f"method has entries for {unknown}; the kernels of this layer are "
                         f"{list(kernels)}.")
    return {name: keras.saving.deserialize_keras_object(m) if isinstance(m, dict) else m
            for name, m in method.items()}


def serialize_methods(methods):
    return {name: keras.saving.serialize_keras_object(m) for name, m in methods.items()}


def activations_of(layer):
    """The activations as they are: Keras cannot give a lambda or a local function back from its
    configuration."""
    return {name: getattr(layer, name) for name in ("activation", "recurrent_activation")
            if callable(getattr(layer, name, None))}


class Linear:
    """A layer's linear map for one kernel, `linear(x, w)`, with w cast to `dtype` first.

    `shared_axes` are the axes of its output along which random numbers are shared.
    """

    def __init__(self, function, dtype, one_hot=False, shared_axes=()):
        self.function, self.dtype, self.one_hot = function, dtype, one_hot
        self.shared_axes = shared_axes

    def __call__(self, x, w):
        return self.function(x, ops.cast(w, self.dtype))

    def of_squares(self, x, w):
        """The map of x squared in w's own precision (a 16-bit square may overflow); of x itself
        where it stands for a one-hot vector, which is its own square."""
        return self.function(x if self.one_hot else ops.square(ops.cast(x, w.dtype)), w)

    def noise_shape(self, y):
        """The shape of random numbers for an output y."""
        return tuple(1 if i in self.shared_axes else n for i, n in enumerate(ops.shape(y)))


class SparseLayer:
    """Mixin in front of a Keras layer class; subclasses list their kernels and linear maps.

    `KERNELS` maps the name of each kernel to the roles of its axes. The method of a kernel may
    be missing: that kernel then stays dense.

    Args:
      method: a method for all kernels of the layer, or `{kernel name: method}`. All other
        arguments are those of the Keras layer.

    Example:

    ```python
    import keras
    import tf_sparsity as ts
    method = ts.MagnitudePruning(ts.ConstantSparsity(0.75, begin_step=0))
    model = keras.Sequential([keras.Input((8,)), ts.layers.SparseDense(4, method=method)])
    ts.update(model)
    assert ts.report(model).rows[0].zeros == 24
    assert keras.ops.count_nonzero(model.layers[0].kernel) == 8
    ```
    """

    KERNELS: dict = {}
    straight_through = False  # while probes.gradients asks for the gradients of effective weights

    def __init__(self, *args, method, **kwargs):
        self.methods = read_methods(method, self.KERNELS)
        self.state = {name: {} for name in self.methods}
        self.bound = None  # the Updater that has taken charge of this layer's method
        self.saved_seeds = {}
        self.clock = None
        self.penalty_sums = None
        self._fixed = None
        super().__init__(*args, **kwargs)
        self._tracker.unlock()  # Embedding(weights=...) is built by its constructor
        needs_seed = any(m.needs_seed for m in self.methods.values())
        self.method_seed = keras.random.SeedGenerator() if needs_seed else None
        if self.built:
            self._tracker.lock()

    @staticmethod
    def unsaved_config(layer):
        """Constructor arguments of the Keras layer that its own get_config leaves out."""
        return {}

    # ---- variables

    def add_weight(self, *args, **kwargs):
        if kwargs.get("name") in self.KERNELS:
            kwargs["autocast"] = False  # methods compute on the float32 master weight
        return super().add_weight(*args, **kwargs)

    def after_build(self):
        """Adds the state of each method and the clock; `sparse_layer` calls it from build."""
        if self.clock is not None:  # Embedding(weights=...) is built by its constructor
            return
        for name, method in self.methods.items():
            dtype = _precision(self.theta(name))
            self.state[name] = {
                key: self.add_weight(
                    name=f"{name}_{key}", shape=spec.shape, initializer=spec.initializer,
                    trainable=spec.trainable, constraint=spec.constraint, dtype=dtype,
                    autocast=False)
                for key, spec in method.state(self.kernel_info(name)).items()}
        if any(method.has_penalty for method in self.methods.values()):
            # [sum, number] of the examples' penalties since `read_penalty`, for `data_loss` in
            # the logs
            self.penalty_sums = self.add_weight(
                name="penalty_sums", shape=(2,), initializer="zeros", trainable=False,
                dtype="float32", autocast=False, aggregation="only_first_replica")
        # [optimizer updates over the model's life, the last step whose updates have run]
        self.clock = self.add_weight(
            name="sparsity_clock", shape=(2,), dtype="int32", trainable=False,
            initializer=lambda shape, dtype=None: ops.convert_to_tensor([0, -1], dtype))

    def theta(self, name):
        """The stored trainable variable of a kernel."""
        return self.__dict__["_" + name]

    def axes(self, name):
        """The role of each axis of a kernel."""
        return self.KERNELS[name]

    def kernel_info(self, name, prefix=""):
        return Kernel(f"{prefix or self.name}/{name}", tuple(self.theta(name).shape),
                      tuple(self.axes(name)))

    def slots(self, prefix=""):
        """`[(method, Slot)]`, one for each sparsified kernel."""
        return [(method, Slot(self.kernel_info(name, prefix), self.theta(name),
                              dict(self.state[name])))
                for name, method in self.methods.items()]

    def inspect(self, name="kernel"):
        """What a kernel's method works with now, as NumPy arrays.

        `theta`, `weight` (of evaluation), the arrays of its state, and of a learned method the
        `penalty`, its `coefficient`, what the method learns (`log_alpha` or `s`) and the
        `threshold` at which that prunes.

        Args:
          name: the kernel, as in `KERNELS`.

        Example:

        ```python
        import keras
        import tf_sparsity as ts
        model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(4)])
        model = ts.sparsify(model, ts.L0Regularization(num_samples=100, group="in"))
        now = model.layers[0].inspect("kernel")
        assert now["log_alpha"].shape == (8, 1) and round(float(now["threshold"]), 3) == -2.398
        ```
        """
        if name not in self.methods:
            raise ValueError(f"Layer '{self.name}' has no method for a kernel {name!r}; it has for "
                             f"{sorted(self.methods)}.")
        method, state, theta = self.methods[name], self.state[name], self._theta_tensor(name)
        now = {"theta": theta, "weight": self.effective(name), **state,
               **method.watch(theta, state)}
        return {key: ops.convert_to_numpy(ops.convert_to_tensor(v)) for key, v in now.items()}

    def read_clock(self):
        """(step, updated): optimizer updates so far, and the last step whose updates ran."""
        step, updated = ops.convert_to_numpy(self.clock)
        return int(step), int(updated)

    def write_clock(self, step, updated):
        self.clock.assign([step, updated])

    # ---- the forward pass

    def _theta_tensor(self, name):
        theta = self.theta(name)
        return ops.cast(ops.convert_to_tensor(theta), _precision(theta))

    def effective(self, name, training=False):
        """The weight that the layer computes with, float32 (float64 for a float64 layer)."""
        theta = self._theta_tensor(name)
        method = self.methods.get(name)
        if method is None:
            return theta
        weight = method.weight(theta, self.state[name], training=bool(training),
                               seed=self.method_seed)
        if self.straight_through:  # the value of weight, the gradient of theta
            weight = ops.stop_gradient(weight) + (theta - ops.stop_gradient(theta))
        return weight

    def apply_kernel(self, name, function, x, training, one_hot=False, dtype=None,
                     shared_axes=()):
        """`method.forward` of one kernel around the layer's own map `function(x, w)`."""
        self.check_bound(training)
        linear = Linear(function, dtype or self.compute_dtype, one_hot, shared_axes)
        method = self.methods.get(name)
        if method is None or self.straight_through:
            return linear(x, self.effective(name, training))
        return method.forward(linear, x, self._theta_tensor(name), self.state[name],
                              training=bool(training), seed=self.method_seed)

    @contextlib.contextmanager
    def fixed_weights(self, training, without=()):
        """Inside, reading `layer.kernel` gives one tensor, made once, of this training mode."""
        self.check_bound(training)
        self._fixed = {name: ops.cast(self.effective(name, training), self.compute_dtype)
                       for name in self.KERNELS if name not in without}
        try:
            yield
        finally:
            self._fixed = None

    def check_bound(self, training):
        if training and not self.bound and train_step.is_running():
            self._check_decay()
        waiting = [m for m in self.methods.values() if m.needs_update]
        if training and waiting and not self.bound and (
                train_step.is_running() or not self._always_training()):
            train_step.give_back()
            raise ValueError(
                f"Layer '{self.name}' is trained with {type(waiting[0]).__name__}, whose state "
                "must be updated between steps, but nothing updates it. Pass "
                "callbacks=[ts.callbacks.SparsityUpdate()] to fit; in a custom loop call "
                "ts.update(model) once before the first step and after every step.")

    def _check_decay(self):
        """Raises if weight decay would pull at gates: the Updater exempts them."""
        spared = sorted({type(method).__name__ for name, method in self.methods.items()
                         for spec in method.state(self.kernel_info(name)).values()
                         if spec.trainable and not spec.decay})
        if spared and train_step.decays_weights():
            train_step.give_back()
            raise ValueError(
                f"Layer '{self.name}' trains the state of {spared[0]}, which weight decay must "
                "spare, and the optimizer has a weight decay. Pass "
                "callbacks=[ts.callbacks.SparsityUpdate()] to fit, which exempts that state.")

    def _always_training(self):
        """Does the model call a layer with training=True in its graph (Monte Carlo dropout)?
        Keras passes that on to all layers after it, so that `training` is true in predict too."""
        context = get_global_attribute("current_call_ctx")
        return context is not None and any(
            node.arguments.kwargs.get("training")
            for layer in context.entry_layer._flatten_layers() for node in layer._inbound_nodes)

    def _get_own_losses(self):
        # Keras collects this once per layer and step, however often the layer is called.
        losses = super()._get_own_losses()
        if self.penalty_sums is None:
            return losses
        penalties = [method.penalty(self._theta_tensor(name), self.state[name])
                     for name, method in self.methods.items() if method.has_penalty]
        self.penalty_sums.assign(
            self.penalty_sums + train_step.examples() * ops.stack([sum(penalties), 1.0]))
        return losses + penalties

    def read_penalty(self):
        """Mean of the layer's penalty over the examples since this was last read."""
        if self.penalty_sums is None:
            return 0.0
        total, number = ops.convert_to_numpy(self.penalty_sums)
        self.penalty_sums.assign([0.0, 0.0])
        return float(total) / max(float(number), 1.0)

    # ---- saving, by name

    def save_own_variables(self, store):
        if not self.built:
            return
        if self.bound:
            self.bound.before_save()
        for variable in self._own_variables():
            store[variable.name] = variable
        if self.method_seed is not None:
            store["method_seed"] = self.method_seed.state
        seeds = self.bound.seeds_for(self) if self.bound else self.saved_seeds
        for key, seed in seeds.items():
            store[key] = seed

    def load_own_variables(self, store):
        if not self.built:
            return
        keys = set(store.keys())
        own = self._own_variables()
        if keys and all(key.isdigit() for key in keys):  # a dense layer's file
            own = self._dense_variables()
            if len(keys) != len(own):
                raise ValueError(f"Layer '{self.name}' has the {len(own)} dense variables "
                                 f"{[v.name for v in own]}; the file holds {len(keys)} arrays.")
            for i, variable in enumerate(own):
                variable.assign(store[str(i)])
            return
        missing = {v.name for v in own} - keys
        if missing:
            raise ValueError(
                f"The weight file lacks {sorted(missing)} of layer '{self.name}' (it holds "
                f"{sorted(keys)}). Was it written by a model sparsified with another method?")
        for variable in own:
            variable.assign(store[variable.name])
        if self.method_seed is not None:
            self.method_seed.state.assign(store["method_seed"])
        self.saved_seeds = {k: np.asarray(store[k]) for k in keys if k.startswith("seed:")}
        if self.bound:
            self.bound.after_load()

    def set_weights(self, weights):
        """Takes what `get_weights` of this layer or of its dense counterpart returned."""
        own = self._dense_variables()
        if len(weights) != len(own):
            return super().set_weights(weights)
        for variable, value in zip(own, weights):
            variable.assign(value)

    def _own_variables(self):
        return self._trainable_variables + self._non_trainable_variables

    def _dense_variables(self):
        """The variables that the Keras layer has too, in its order."""
        state = {id(v) for s in self.state.values() for v in s.values()}
        state |= {id(self.clock), id(self.penalty_sums)}
        return [v for v in self._own_variables() if id(v) not in state]

    # ---- configuration

    def get_config(self):
        return {**super().get_config(), **self.unsaved_config(self),
                "method": serialize_methods(self.methods)}

    def quantize(self, *args, **kwargs):
        raise ValueError(f"Layer '{self.name}' is sparsified and cannot be quantized in place. "
                         "Quantize the plain model: ts.strip(model).quantize(...).")

    def enable_lora(self, *args, **kwargs):
        raise ValueError(f"Layer '{self.name}' is sparsified; LoRA would add a dense update to "
                         "its kernel. Use it on the plain model: ts.strip(model).")


def _precision(theta):
    """Masks, penalties and effective weights are float32, also under a 16-bit policy."""
    return "float64" if theta.dtype == "float64" else "float32"


def kernel_property(name):
    """`layer.<name>` reads as the effective weight; Keras' build stores theta behind it."""

    def get(self):
        if self._fixed is not None and name in self._fixed:
            return self._fixed[name]
        if "_" + name not in self.__dict__:
            raise AttributeError(f"Build layer '{self.name}' before reading `{name}`.")
        context = get_global_attribute("current_call_ctx")
        if context is None:
            return self.effective(name)
        # Keras' code reads it inside a call: a cell in keras.layers.RNN, or Bidirectional, which
        # hands the kernels of both cells to cuDNN.
        training = context.get_value("training")
        self.check_bound(training)
        return ops.cast(self.effective(name, training), self.compute_dtype)

    def set_theta(self, variable):
        self.__dict__["_" + name] = variable

    return property(get, set_theta, doc=f"The effective `{name}`, with its zeros.")


def add_bias_and_activation(layer, y):
    """What Keras' convolutions do after the convolution."""
    if layer.use_bias:
        shape = [1] * (layer.rank + 2)
        shape[-1 if layer.data_format == "channels_last" else 1] = -1
        y = ops.add(y, ops.reshape(layer.bias, shape))
    return y if layer.activation is None else layer.activation(y)


def sparse_layer(cls):
    """Completes a sparse class: its Keras class, its signature, its kernels, its registration."""
    cls.keras_class = next(c for c in cls.__mro__ if c.__module__.startswith("keras."))
    # Keras addresses layers inside a weight file by the snake case of their class' name. With
    # Keras' own name, weight files of the dense and of the sparsified model interchange.
    cls.__name__ = cls.keras_class.__name__
    parameters = list(inspect.signature(cls.keras_class.__init__).parameters.values())[1:]
    at = len(parameters) - (parameters[-1].kind is inspect.Parameter.VAR_KEYWORD)
    parameters.insert(at, inspect.Parameter("method", inspect.Parameter.KEYWORD_ONLY))
    cls.__signature__ = inspect.Signature(parameters)
    keras_build = cls.keras_class.build

    @functools.wraps(keras_build)  # Keras reads the names of build's arguments
    def build(self, *args, **kwargs):
        if self.quantization_mode is not None:
            raise ValueError(f"Layer '{self.name}' has the quantized dtype policy "
                             f"{self.dtype_policy.name!r}: sparsify before quantizing.")
        keras_build(self, *args, **kwargs)
        self.after_build()

    cls.build = build
    if issubclass(cls, SparseLayer):
        for name in cls.KERNELS:
            setattr(cls, name, kernel_property(name))
    return keras.saving.register_keras_serializable(
        package="tf_sparsity", name=cls.__qualname__)(cls)
