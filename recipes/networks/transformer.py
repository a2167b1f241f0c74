"""The Transformer of Vaswani et al. 2017, arXiv:1706.03762, as tensor2tensor's transformer_base has
it: layer normalisation before each block, sinusoidal positions, one matrix for the words of both
languages and for the softmax.

Every kernel is that of a `Dense` or `ReversibleEmbedding` of Keras, in one functional model, so
that `ts.sparsify` reaches all of them. The layers below have no kernel.
"""

import dataclasses
import math

import keras
from keras import ops

PAD, END = 0, 1  # tensor2tensor's; PAD before the first word too, where it stands for the beginning
TARGET_SPACES = 32  # tensor2tensor's embedding of the target language; ours is always the same one
LONGEST_WAVE = 1e4  # of the positions; the shortest is 1


@dataclasses.dataclass(frozen=True)
class Size:
    """How large a Transformer is.

    Attributes:
      vocabulary: words that both languages share, `PAD` and `END` among them.
      width: features of a position; even, and a multiple of `heads`.
      hidden: units of a feed-forward block.
      heads: of each attention.
      layers: of the encoder, and as many of the decoder.
    """

    vocabulary: int
    width: int
    hidden: int
    heads: int
    layers: int


BASE = Size(33_288, 512, 2048, 8, 6)  # with the vocabulary of The State of Sparsity


def transformer(size, dropout):
    """A model (source, target) -> logits of the word that follows each position of the target.

    Args:
      size: a `Size`.
      dropout: rate of blocks, attention and hidden units alike.

    Inputs are integers of shape (sentences, words), `PAD` after the last word; the target begins
    with `PAD`. Layers are named encoder0_query, decoder5_memory_key and so on.
    """
    source = keras.Input((None,), dtype="int32", name="source")
    target = keras.Input((None,), dtype="int32", name="target")
    embedding = keras.layers.ReversibleEmbedding(
        size.vocabulary, size.width, name="embedding",
        embeddings_initializer=keras.initializers.RandomNormal(stddev=size.width ** -0.5))
    there = NotPadding(name="source_there")(source)

    x = Placed(name="source_placed")([embedding(source), source])
    x = TargetSpace(name="target_space")(x)
    x = keras.layers.Dropout(dropout, name="source_dropout")(x)
    for i in range(size.layers):
        block = Blocks(size, dropout, f"encoder{i}")
        x = block.attention(x, "", mask=there)
        x = block.feed_forward(x)
    memory = _normalized(x, "encoder")

    x = Placed(name="target_placed")([embedding(target), target])
    x = keras.layers.Dropout(dropout, name="target_dropout")(x)
    for i in range(size.layers):
        block = Blocks(size, dropout, f"decoder{i}")
        x = block.attention(x, "", causal=True)
        x = block.attention(x, "memory_", memory=memory, mask=there)
        x = block.feed_forward(x)
    logits = embedding(_normalized(x, "decoder"), reverse=True)
    return keras.Model([source, target], logits, name="transformer")


def reader(model):
    """The encoder alone: source -> what the decoder looks at. It shares the model's layers."""
    return keras.Model(model.inputs[0], model.get_layer("encoder_normalized").output)


def writer(model, count):
    """The decoder alone: (memory, source, target, position) -> the log probabilities of the `count`
    likeliest words to follow that position, and these words, both of shape (sentences, count).

    Position is of shape (sentences, 1). The writer shares the model's layers.
    """
    source, target = model.inputs
    memory = model.get_layer("encoder_normalized").output
    position = keras.Input((1,), dtype="int32", name="position")
    x = At(name="at")([model.get_layer("decoder_normalized").output, position])
    logits = model.get_layer("embedding")(x, reverse=True)
    return keras.Model([memory, source, target, position], Likeliest(count, name="words")(logits))


class Blocks:
    """The blocks of one layer: x + dropout(block(normalised x))."""

    def __init__(self, size, dropout, name):
        self.size, self.dropout, self.name = size, dropout, name

    def attention(self, x, kind, memory=None, mask=None, causal=False):
        name = f"{self.name}_{kind}"
        normal = _normalized(x, f"{name}attention")
        looked_at = normal if memory is None else memory
        projected = [keras.layers.Dense(self.size.width, use_bias=False, name=name + what)(of)
                     for what, of in (("query", normal), ("key", looked_at), ("value", looked_at))]
        y = Attention(self.size.heads, self.dropout, causal, name=f"{name}attention")(
            projected if mask is None else [*projected, mask])
        y = keras.layers.Dense(self.size.width, use_bias=False, name=f"{name}output")(y)
        return self._added(x, y, f"{name}attention")

    def feed_forward(self, x):
        y = _normalized(x, f"{self.name}_feed_forward")
        y = keras.layers.Dense(self.size.hidden, "relu", name=f"{self.name}_hidden")(y)
        y = keras.layers.Dropout(self.dropout, name=f"{self.name}_hidden_dropout")(y)
        y = keras.layers.Dense(self.size.width, name=f"{self.name}_back")(y)
        return self._added(x, y, f"{self.name}_feed_forward")

    def _added(self, x, y, name):
        y = keras.layers.Dropout(self.dropout, name=f"{name}_dropout")(y)
        return keras.layers.Add(name=f"{name}_added")([x, y])


def _normalized(x, name):
    return keras.layers.LayerNormalization(epsilon=1e-6, name=f"{name}_normalized")(x)


# ---- layers without kernels

register = keras.saving.register_keras_serializable(package="recipes")


@register
class NotPadding(keras.layers.Layer):
    """words (n, m) -> where they are no padding, (n, 1, 1, m), as `Attention` takes it."""

    def call(self, words):
        return ops.not_equal(words, PAD)[:, None, None, :]

    def compute_output_spec(self, words):
        return keras.KerasTensor((words.shape[0], 1, 1, words.shape[1]), "bool")


@register
class Placed(keras.layers.Layer):
    """Embedded words times sqrt(width), 0 for padding, plus their positions."""

    def call(self, inputs):
        embedded, words = inputs
        width = embedded.shape[-1]
        there = ops.cast(ops.not_equal(words, PAD), embedded.dtype)[..., None]
        waves = ops.cast(positions(ops.shape(words)[1], width), embedded.dtype)
        return embedded * math.sqrt(width) * there + waves

    def compute_output_shape(self, shapes):
        return shapes[0]


def positions(length, width):
    """sin and cos, side by side, of each position over width / 2 wave lengths in geometric order
    from 1 to `LONGEST_WAVE`; (length, width) in float32. Tensor2tensor's."""
    count = width // 2
    step = math.log(LONGEST_WAVE) / max(count - 1, 1)
    frequencies = ops.exp(-step * ops.arange(count, dtype="float32"))
    angles = ops.arange(length, dtype="float32")[:, None] * frequencies[None]
    return ops.concatenate([ops.sin(angles), ops.cos(angles)], axis=1)


@register
class TargetSpace(keras.layers.Layer):
    """Adds a row of a small table, in tensor2tensor one for each target language. It is no kernel:
    the paper does not sparsify it."""

    def build(self, shape):
        self.table = self.add_weight(
            (TARGET_SPACES, shape[-1]), keras.initializers.RandomNormal(stddev=shape[-1] ** -0.5),
            name="table")

    def call(self, x):
        return x + ops.cast(self.table[0], x.dtype)


@register
class Attention(keras.layers.Layer):
    """softmax(q k^T / sqrt(width of a head)) v for each head, of projections that come in.

    Args:
      heads: how many; they share the features out among themselves, in order.
      dropout: rate, of the softmax.
      causal: may a position look at those up to itself only?
      mask: (optional fourth input) where it may look, broadcast to (n, heads, queries, keys).
    """

    def __init__(self, heads, dropout=0.0, causal=False, **kwargs):
        super().__init__(**kwargs)
        self.heads, self.rate, self.causal = heads, dropout, causal
        self.dropout = keras.layers.Dropout(dropout)

    def call(self, inputs, training=None):
        query, key, value = (self._split(x) for x in inputs[:3])
        scores = ops.matmul(query * query.shape[-1] ** -0.5, ops.transpose(key, (0, 1, 3, 2)))
        scores = ops.cast(scores, "float32")
        if self.causal:
            at, to = (ops.arange(ops.shape(x)[2]) for x in (query, key))
            scores = _only(scores, (to[None] <= at[:, None])[None, None])
        for mask in inputs[3:]:
            scores = _only(scores, mask)
        shares = ops.cast(ops.softmax(scores), value.dtype)
        y = ops.matmul(self.dropout(shares, training=training), value)
        shape = ops.shape(inputs[0])
        return ops.reshape(ops.transpose(y, (0, 2, 1, 3)), (shape[0], shape[1], value.shape[1]
                                                            * value.shape[3]))

    def _split(self, x):
        """(n, m, width) -> (n, heads, m, width of a head)."""
        shape = ops.shape(x)
        x = ops.reshape(x, (shape[0], shape[1], self.heads, x.shape[-1] // self.heads))
        return ops.transpose(x, (0, 2, 1, 3))

    def compute_output_shape(self, shapes):
        return (*shapes[0][:2], shapes[2][-1])

    def get_config(self):
        return {**super().get_config(), "heads": self.heads, "dropout": self.rate,
                "causal": self.causal}


def _only(scores, mask):
    return ops.where(mask, scores, -1e9)


@register
class At(keras.layers.Layer):
    """(x, position): x of shape (n, m, width) at its position, (n, width)."""

    def call(self, inputs):
        x, position = inputs
        return ops.take_along_axis(x, position[..., None], axis=1)[:, 0]

    def compute_output_shape(self, shapes):
        return (shapes[0][0], shapes[0][2])


@register
class Likeliest(keras.layers.Layer):
    """Logits -> `(log probabilities, words)` of the likeliest words, as many as there are."""

    def __init__(self, count, **kwargs):
        super().__init__(**kwargs)
        self.count = count

    def call(self, logits):
        log_p = ops.log_softmax(ops.cast(logits, "float32"))
        return ops.top_k(log_p, min(self.count, logits.shape[-1]))

    def get_config(self):
        return {**super().get_config(), "count": self.count}


# ---- training


class SmoothedCrossEntropy(keras.losses.Loss):
    """Cross entropy with q = 1 - e on the word and e / (vocabulary - 1) on each other one, less
    the entropy of q, so that the best loss is 0; tensor2tensor's label smoothing.

    The mean over words by weight: padding has none.

    Args:
      smoothing: e, in [0, 1).
    """

    def __init__(self, smoothing):
        super().__init__(name="smoothed_cross_entropy", reduction="mean_with_sample_weight")
        self.smoothing = smoothing

    def call(self, words, logits):
        log_p = ops.log_softmax(ops.cast(logits, "float32"))
        count = log_p.shape[-1]
        word = ops.cast(words, "int32")[..., None]
        right = ops.take_along_axis(log_p, word, axis=-1)[..., 0]
        if not self.smoothing:
            return -right
        on, off = 1 - self.smoothing, self.smoothing / (count - 1)
        entropy = -(on * math.log(on) + (count - 1) * off * math.log(off))
        return -(on * right + off * (ops.sum(log_p, axis=-1) - right)) - entropy


@register
class InverseSquareRoot(keras.optimizers.schedules.LearningRateSchedule):
    """factor / sqrt(width) * min(1, t / warm up) / sqrt(max(t, warm up)) at step t.

    Args:
      factor: a number; tensor2tensor's is 2.
      width: of the Transformer.
      warm_up: steps, at least 1.
    """

    def __init__(self, factor, width, warm_up):
        self.factor, self.width, self.warm_up = factor, width, warm_up

    def __call__(self, step):
        step = ops.cast(step, "float32")
        rise = ops.minimum(1.0, step / self.warm_up)
        fall = ops.rsqrt(ops.maximum(step, float(self.warm_up)))
        return self.factor * self.width ** -0.5 * rise * fall

    def get_config(self):
        return {"factor": self.factor, "width": self.width, "warm_up": self.warm_up}
