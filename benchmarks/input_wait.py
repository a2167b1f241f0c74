"""The time that the recipes' data pipelines take for a batch, over that of a training step.

A pipeline alone is timed against a dense step alone, on batches of the published form made of
random numbers: what training waits for is at most the ratio, for the next batch may be made while a
step runs. The step is that of this processor; on an accelerator it is shorter and the cores are
others.
"""

import tempfile
import time
from pathlib import Path

import keras
import numpy as np

from benchmarks import measure
from recipes import (sos_lenet_mnist, sos_resnet20_cifar, sos_resnet50_imagenet,
                     sos_transformer_multi30k)
from recipes.data import imagenet, translation
from recipes.networks import lenet, resnet50, resnet_cifar
from recipes.running import training
from recipes.shared import sos_translation

SEED, GOAL = 0, 0.1
ROUNDS = 5
JPEG = 375, 500  # height and width; ImageNet's are of this size on average
IMAGES, QUALITY = 256, 90


def pictures(shape, count, size, augment=None):
    draw = np.random.default_rng(SEED)
    return training.Batches(draw.random((count, *shape), "float32"),
                            draw.integers(0, 10, count).astype("int32"), size, SEED, augment)


def jpegs(folder, size, steps):
    """ImageNet's pipeline on pictures of smooth noise, in one file."""
    import tensorflow as tf
    import tensorflow_datasets as tfds

    features = tfds.builder(imagenet.NAME, data_dir=folder).info.features
    draw, path = np.random.default_rng(SEED), str(Path(folder) / "pictures.tfrecord")
    with tf.io.TFRecordWriter(path) as file:
        for i in range(IMAGES):
            coarse = draw.random((JPEG[0] // 8, JPEG[1] // 8, 3)).astype("float32")
            picture = tf.image.resize(255 * coarse, JPEG, "bicubic") + draw.normal(0, 4, (*JPEG, 3))
            encoded = tf.io.encode_jpeg(
                tf.cast(tf.clip_by_value(picture, 0, 255), tf.uint8), quality=QUALITY)
            file.write(features.serialize_example(features.encode_example(
                {"image": encoded.numpy(), "label": i % 10, "file_name": f"{i}.JPEG"})))
    split = imagenet.Split(([path], [0], [IMAGES]), IMAGES, 1000, features)
    return imagenet.Stream(split, size, steps, SEED)


def sentences():
    """Multi30k's: 29,000 pairs, about 15 subwords each."""
    draw, c = np.random.default_rng(SEED), sos_transformer_multi30k
    sides = [translation.Words(draw.integers(4, c.VOCABULARY, length)
                               for length in np.clip(draw.normal(15, 5, 29_000), 3, 40).astype(int))
             for _ in range(2)]
    return translation.TokenBatches(*sides, c.LENGTHS, c.BATCH, SEED)


def by_task(model, optimizer):
    model.compile(optimizer, keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    return model


def translator():
    c = sos_transformer_multi30k.Configuration(technique="dense")
    model = sos_translation.network(c)
    sos_translation.compile(model, c)
    return model


def cases(folder):
    """{name: (batches, compiled model, steps of a round)}"""
    c, r = sos_resnet20_cifar, sos_resnet50_imagenet
    sgd = keras.optimizers.SGD
    return {
        "LeNet-300-100, MNIST": (
            pictures((28, 28, 1), 60_000, sos_lenet_mnist.BATCH), by_task(lenet.lenet300(), sgd()),
            200),
        "ResNet-20, CIFAR-10, moved and mirrored": (
            pictures((32, 32, 3), 50_000, c.BATCH, c.flipped_and_moved),
            by_task(resnet_cifar.resnet(), sgd()), 5),
        "small Transformer, Multi30k": (sentences(), translator(), 10),
        "ResNet-50, ImageNet, batch 32": (
            jpegs(folder, 32, 10**6), by_task(resnet50.resnet(decay=r.DECAY), sgd()), 1),
    }


def producer(batches, steps):
    """A function: the seconds of a batch, over so many."""
    if isinstance(batches, keras.utils.PyDataset):
        def produce():
            started = time.perf_counter()
            for index in range(steps):
                batches[index]
            return (time.perf_counter() - started) / steps
    else:
        def produce():
            stream = iter(batches.for_fit()["x"])  # a new one: nothing was made ahead in a step
            next(stream)
            started = time.perf_counter()
            for _ in range(8 * steps):
                next(stream)
            return (time.perf_counter() - started) / (8 * steps)
    return produce


def trainer(batches, model, steps):
    """A function: the seconds of a step on one batch, over so many."""
    batch = batches[0] if isinstance(batches, keras.utils.PyDataset) else [
        part.numpy() for part in next(iter(batches.for_fit()["x"]))]
    model.train_on_batch(*batch)

    def train():
        started = time.perf_counter()
        for _ in range(steps):
            model.train_on_batch(*batch)
        return (time.perf_counter() - started) / steps
    return train


def run(small=False):
    found = []
    with tempfile.TemporaryDirectory() as folder:
        for name, (batches, model, steps) in list(cases(folder).items())[:1 if small else None]:
            rounds = measure.interleave({"batch": producer(batches, steps),
                                         "step": trainer(batches, model, steps)},
                                        2 if small else ROUNDS)
            found.append({"pipeline": name, "examples": batches_size(batches), "seconds": rounds,
                          "ratio": measure.ratio(rounds["batch"], rounds["step"])})
    return measure.document("input_wait", {"seed": SEED, "goal": GOAL, "jpeg": list(JPEG),
                                           "quality": QUALITY}, found)


def batches_size(batches):
    """Examples of a batch; of sentences, those of its first one."""
    if isinstance(batches, keras.utils.PyDataset):
        return len(batches[0][1])
    return batches.size
