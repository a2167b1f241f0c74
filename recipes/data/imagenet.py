"""ImageNet for training and for evaluation: tensorflow-datasets' imagenet2012, in fixed shapes.

Crops, resizing and normalization are those of the paper's code (google-research/google-research,
state_of_sparsity/sparse_rn50, which has them from the TPU reference models). What differs is how
chance is drawn: the order of an epoch, its crops and its flips are a function of (seed, epoch)
alone, so that a resumed run sees what an uninterrupted one would have seen.
"""

import dataclasses
import pathlib

import keras
import tensorflow as tf
import tensorflow_datasets as tfds

from recipes.data import fingerprint as fingerprints

NAME = "imagenet2012"
PICTURE = 224
MARGIN = 32  # the center crop takes picture / (picture + MARGIN) of the shorter side
# Training crops: a share of the area, width / height, and how often one is tried. After that many
# failures the center crop is taken.
AREA, ASPECT, ATTEMPTS = (0.08, 1.0), (3 / 4, 4 / 3), 10
# Of red, green and blue over ImageNet, for pixels from 0 to 255.
MEAN = [0.485 * 255, 0.456 * 255, 0.406 * 255]
DEVIATION = [0.229 * 255, 0.224 * 255, 0.225 * 255]
SHUFFLED = 1024  # images that are shuffled together: the buffer of the paper's code
FILES = 16  # that are read by turns, after their order has been shuffled; assumed
EVALUATED = 1000  # images of a batch; 50,000 are 50 whole ones

MISSING = """\
ImageNet is not in {folder}: {why}
It is given to those who register, so that its two files are downloaded by hand:
  1. https://image-net.org/download-images: ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar
     into {folder}/downloads/manual
  2. python -c "import tensorflow_datasets as tfds; \
tfds.builder('{name}', data_dir='{folder}').download_and_prepare()"
  3. the same command as now, with data_dir={folder}"""


@dataclasses.dataclass(frozen=True)
class Split:
    """Records in files.

    Attributes:
      files: (names, records to skip in each, records to take from each).
      examples: how many that are.
      classes: number of classes.
      features: what reads a record.
    """

    files: tuple
    examples: int
    classes: int
    features: object


def load(data_dir=None, holdout=0):
    """`(training split, validation split, split of the held out training images or None)`.

    Args:
      data_dir: a folder of tensorflow-datasets; None: its own default.
      holdout: training images kept out.

    Raises:
      ValueError: if the data is not there, with the commands that get it; if it is in files that
        are no TFRecords; if more images are held out than there are.
    """
    builder = _builder(data_dir)
    images = builder.info.splits["train"].num_examples
    if holdout >= images:
        raise ValueError(f"holdout={holdout}: there are {images} training images.")
    names = ["train", "validation"] if not holdout else [
        f"train[:{images - holdout}]", "validation", f"train[{images - holdout}:]"]
    found = [_split(builder, name) for name in names]
    return *found[:2], found[2] if holdout else None


def _builder(data_dir):
    if keras.config.backend() != "tensorflow":
        tf.config.set_visible_devices([], "GPU")  # its memory is the other backend's
    builder = tfds.builder(NAME, data_dir=data_dir)
    lacking = [name for name in ("train", "validation") if name not in builder.info.splits]
    if lacking:
        folder = pathlib.Path(builder.data_dir).parent.parent
        raise ValueError(MISSING.format(
            name=NAME, folder=folder,
            why=f"there is no {' and no '.join(lacking)} split in {builder.data_dir}."))
    if builder.info.file_format.value != "tfrecord":
        raise ValueError(f"{builder.data_dir} holds files of the format "
                         f"{builder.info.file_format.value}; here tfrecord is read. Prepare it "
                         "with file_format='tfrecord', the default of download_and_prepare.")
    return builder


def _split(builder, name):
    info = builder.info.splits[name]
    parts = info.file_instructions
    return Split(tuple(list(column) for column in zip(*((p.filename, p.skip, p.take)
                                                        for p in parts))),
                 info.num_examples, builder.info.features["label"].num_classes,
                 builder.info.features)


def fingerprint(*splits):
    """That of the files' names, which say version and number, and of what is taken from each: 140
    GB are not read for it."""
    return fingerprints.fingerprint(*(
        [f"{pathlib.Path(name).name} {skip} {take}" for name, skip, take in zip(*split.files)]
        for split in splits))


# ---- batches


class Stream:
    """Endless training batches of one shape, for Keras' `fit` with so many steps in an epoch.

    An epoch is cut by steps, not by images: it goes through all images in a new order, and then
    through some of them again if they are fewer than its steps need.

    Args:
      split: of `load`.
      size: pictures of a batch.
      steps: of an epoch.
      seed: integer >= 0.
      picture: their height and width.
    """

    def __init__(self, split, size, steps, seed, picture=PICTURE):
        self.split, self.size, self.steps = split, size, steps
        self.seed, self.picture = seed, picture
        self.examples = split.examples
        self.begin(0)

    def __len__(self):
        return self.steps

    def begin(self, epoch):
        """The epoch that `for_fit` starts with."""
        self.epoch = epoch

    def for_fit(self):
        """The arguments of `fit`."""
        return {"x": self.dataset(), "steps_per_epoch": self.steps, "shuffle": False}

    def dataset(self):
        """A tf.data.Dataset of (pictures, classes), from the epoch that begins."""

        def pictures(seed, record):
            image, label = _parsed(self.split, record)
            return _normalized(_training_crop(image, seed, self.picture)), label

        examples = tf.data.Dataset.range(self.epoch, tf.int64.max).flat_map(self._records)
        return (examples.map(pictures, tf.data.AUTOTUNE, deterministic=True)
                .batch(self.size, drop_remainder=True).prefetch(tf.data.AUTOTUNE))

    def _records(self, epoch):
        """The (seed of its crop, record) pairs of an epoch."""
        order, crops = (_fold([self.seed, use], epoch) for use in (0, 1))
        passes = tf.data.Dataset.range(tf.int64.max).flat_map(
            lambda number: _shuffled(self.split, _fold(order, number)))
        return passes.take(self.steps * self.size).enumerate().map(
            lambda index, record: (_fold(crops, index), record))


def evaluation(split, picture=PICTURE, devices=1):
    """All pictures of a split with their classes, in order, a tf.data.Dataset of batches.

    Raises:
      ValueError: if the devices cannot share the pictures evenly.
    """
    if split.examples % devices:
        raise ValueError(f"{split.examples} pictures cannot be shared evenly by {devices} devices. "
                         "Use a number of devices (or of images held out) that divides them.")

    def pictures(record):
        image, label = _parsed(split, record)
        return _normalized(_center_crop(image, picture)), label

    size = EVALUATED
    if devices > 1:  # each batch in equal shares: MirroredStrategy stops at an empty one
        size = max(n for n in range(devices, EVALUATED + 1, devices) if split.examples % n == 0)
    batches = (tf.data.Dataset.from_tensor_slices(_columns(split)).flat_map(_opened)
               .map(pictures, tf.data.AUTOTUNE, deterministic=True).batch(size))
    known = tf.data.experimental.assert_cardinality(-(-split.examples // size))
    return batches.apply(known).prefetch(tf.data.AUTOTUNE)


# ---- order


def _fold(seed, number):
    """The seed of one of many draws."""
    return tf.random.experimental.stateless_fold_in(seed, number)


def _columns(split):
    """Names, records to skip and records to take, of all files."""
    names, skip, take = split.files
    return tf.constant(names), tf.constant(skip, "int64"), tf.constant(take, "int64")


def _opened(name, skip, take):
    return tf.data.TFRecordDataset(name).skip(skip).take(take)


def _shuffled(split, seed):
    """One pass through the records: files in random order, read by turns, and blocks shuffled.

    `Dataset.shuffle` would do for the blocks, but its draws depend on TensorFlow's global seed too.
    """
    shuffle = tf.random.experimental.stateless_shuffle
    order = shuffle(tf.range(len(split.files[0])), _fold(seed, 0))
    files = tf.data.Dataset.from_tensor_slices(
        tuple(tf.gather(column, order) for column in _columns(split)))
    records = files.interleave(_opened, FILES, num_parallel_calls=tf.data.AUTOTUNE,
                               deterministic=True)
    return records.batch(SHUFFLED).enumerate(start=1).map(
        lambda number, block: shuffle(block, _fold(seed, number))).unbatch()


# ---- pictures


def _parsed(split, record):
    """`(JPEG, class)` of a record."""
    example = split.features.deserialize_example(
        record, decoders={"image": tfds.decode.SkipDecoding()})
    return example["image"], example["label"]


def _training_crop(jpeg, seed, picture):
    """A random part of the image, or of its mirror image."""
    shape = tf.io.extract_jpeg_shape(jpeg)
    begin, size, _ = tf.image.stateless_sample_distorted_bounding_box(
        shape, tf.constant([[[0.0, 0.0, 1.0, 1.0]]]), _fold(seed, 0), aspect_ratio_range=ASPECT,
        area_range=AREA, max_attempts=ATTEMPTS)
    whole = tf.reduce_all(size[:2] == shape[:2])  # what all failures give
    image = tf.cond(whole, lambda: _center_crop(jpeg, picture),
                    lambda: _resized(jpeg, begin[0], begin[1], size[0], size[1], picture))
    return tf.image.stateless_random_flip_left_right(image, _fold(seed, 1))


def _center_crop(jpeg, picture):
    """The middle of the image, with a margin."""
    shape = tf.io.extract_jpeg_shape(jpeg)
    height, width = shape[0], shape[1]
    shorter = tf.cast(tf.minimum(height, width), "float32")
    side = tf.cast(picture / (picture + MARGIN) * shorter, "int32")
    return _resized(jpeg, (height - side + 1) // 2, (width - side + 1) // 2, side, side, picture)


def _resized(jpeg, top, left, height, width, picture):
    """A window of the image, brought to its size as TensorFlow 1 did: bicubic, pixels by corner."""
    window = tf.io.decode_and_crop_jpeg(jpeg, tf.stack([top, left, height, width]), channels=3)
    resized = tf.raw_ops.ResizeBicubic(images=window[None], size=[picture, picture])[0]
    return tf.ensure_shape(resized, [picture, picture, 3])


def _normalized(image):
    return (image - MEAN) / DEVIATION
