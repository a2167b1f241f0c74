"""ResNet-50 on ImageNet: the network, the pictures, and whole runs on a tiny ImageNet."""

import io
import math
import tarfile

import keras
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds

import tf_sparsity as ts
from recipes import imagenet
from recipes.resnet50 import resnet50

CLASSES = ("n01440764", "n01443537")  # the first two of ImageNet's
IMAGES, VALIDATION = 20, 12


def jpeg(pixels, **quality):
    return tf.io.encode_jpeg(pixels.astype("uint8"), **quality).numpy()


def add(archive, name, data):
    entry = tarfile.TarInfo(name)
    entry.size = len(data)
    archive.addfile(entry, io.BytesIO(data))


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    """An ImageNet of 32 pictures, prepared by tensorflow-datasets from the two archives."""
    folder = tmp_path_factory.mktemp("imagenet")
    manual = folder / "downloads" / "manual"
    manual.mkdir(parents=True)
    generator = np.random.default_rng(0)

    def picture(label):
        height, width = generator.integers(40, 70, 2)
        return jpeg(generator.integers(0, 256, (height, width, 3)) // 2 + 128 * label)

    with tarfile.open(manual / "ILSVRC2012_img_train.tar", "w") as archive:
        for label, name in enumerate(CLASSES):
            inner = io.BytesIO()
            with tarfile.open(fileobj=inner, mode="w") as of_class:
                for i in range(IMAGES // 2):
                    add(of_class, f"{name}_{i}.JPEG", picture(label))
            add(archive, f"{name}.tar", inner.getvalue())
    with tarfile.open(manual / "ILSVRC2012_img_val.tar", "w") as archive:
        for i in range(VALIDATION):
            add(archive, f"ILSVRC2012_val_{i + 1:08d}.JPEG", picture(i % 2))
    tfds.builder("imagenet2012", data_dir=folder).download_and_prepare(
        download_config=tfds.download.DownloadConfig(num_shards=3))
    return folder


# ---- the network


def test_the_network_has_the_published_number_of_parameters():
    """53 convolutions with 23,454,912 weights and a last layer with 2,048,000; normalization has
    26,560 channels, each with a scale and an offset (and two averages); the bias has 1,000."""
    model = resnet50(decay=1e-4)
    report = ts.report(model)
    assert len(report.rows) == 54 and report.total("size") == 25_502_912
    assert [report.rows[0].name, report.rows[-1].name] == ["stem/kernel", "classes/kernel"]
    assert report.rows[-1].size == 2_048_000
    trained, averages = (sum(math.prod(v.shape) for v in variables) for variables in
                         (model.trainable_variables, model.non_trainable_variables))
    assert trained == 25_502_912 + 1_000 + 2 * 26_560 == 25_557_032
    assert averages == 2 * 26_560


def test_the_stride_is_in_the_convolution_of_3_x_3():
    model = resnet50(width=2, picture=64)
    strided = [layer.name for layer in model.layers
               if isinstance(layer, keras.layers.Conv2D) and layer.strides == (2, 2)]
    assert strided == ["stem", *(f"stage{i}_block1_{name}" for i in (2, 3, 4)
                                 for name in ("conv2", "shortcut"))]
    # 64 halved by the stem, the pooling and three stages
    assert [model.get_layer(f"stage{i}_block1_conv3").output.shape[1:] for i in (1, 2, 3, 4)] == [
        (16, 16, 8), (8, 8, 16), (4, 4, 32), (2, 2, 64)]


def test_initial_weights_and_decay():
    model = resnet50(width=16, picture=32, decay=0.5)
    conv = np.asarray(model.get_layer("stage4_block2_conv2").kernel)  # 147,456 weights
    # variance 1 / fan in = 1 / (9 x 128); truncated at two deviations of the normal they are from
    assert conv.std() == pytest.approx((9 * 128) ** -0.5, rel=0.02)
    assert np.abs(conv).max() <= 2 * (9 * 128) ** -0.5 / 0.8796
    last = np.asarray(model.get_layer("classes").kernel)
    assert last.std() == pytest.approx(0.01, rel=0.02)
    zero = [layer.name for layer in model.layers
            if isinstance(layer, keras.layers.BatchNormalization) and not np.any(layer.gamma)]
    assert len(zero) == 16 and all(name.endswith("_conv3_bn") for name in zero)
    assert {(layer.momentum, layer.epsilon) for layer in model.layers
            if isinstance(layer, keras.layers.BatchNormalization)} == {(0.9, 1e-5)}
    kernels = [row.name.removesuffix("/kernel") for row in ts.report(model).rows]
    squares = sum(np.square(np.asarray(model.get_layer(name).kernel, "float64")).sum()
                  for name in kernels)
    # half of the squares of the kernels, and of nothing else; sums of 54 in float32
    assert float(sum(model.losses)) == pytest.approx(0.5 / 2 * squares, rel=1e-5)
    assert resnet50(width=1, picture=32).losses == []


# ---- pictures


def test_the_center_crop():
    """Half of the shorter side, 32 of 64 pixels: nothing is resized, so that the window is exact."""
    pixels = np.random.default_rng(0).integers(0, 256, (64, 71, 3))
    image = jpeg(pixels, chroma_downsampling=False)
    cropped = imagenet._center_crop(image, picture=32)
    decoded = tf.io.decode_jpeg(image).numpy()
    # (64 - 32 + 1) // 2 = 16 and (71 - 32 + 1) // 2 = 20
    assert np.array_equal(cropped, decoded[16:48, 20:52])
    grey = imagenet._center_crop(jpeg(pixels[..., :1]), picture=32)
    assert grey.shape == (32, 32, 3)


def test_normalization():
    pixels = np.array([[[255 * 0.485, 0.0, 255.0]]])
    assert np.allclose(imagenet._normalized(pixels),
                       [0.0, -0.456 / 0.224, (1 - 0.406) / 0.225])


def test_training_crops():
    """Red tells the column and green the row of a pixel, so that a crop says where it is from."""
    rows, columns = np.mgrid[:256, :256]
    image = jpeg(np.stack([columns, rows, 0 * rows], -1), quality=100, chroma_downsampling=False)
    areas, ratios, mirrored = [], [], []
    for i in range(60):
        crop = imagenet._training_crop(image, [3, i], picture=64).numpy()
        assert crop.shape == (64, 64, 3)
        across, down = crop[32, :, 0], crop[:, 32, 1]
        # 63 of the 64 steps of the resized window, within 3 pixels
        width, height = (np.ptp(line) * 64 / 63 for line in (across, down))
        areas.append(width * height / 256 ** 2)
        ratios.append(width / height)
        mirrored.append(across[0] > across[-1])
    assert 0.07 < min(areas) < 0.2 and 0.8 < max(areas) < 1.03
    assert 0.72 < min(ratios) < 0.8 and 1.25 < max(ratios) < 1.39
    assert 15 < sum(mirrored) < 45  # half of 60; five standard deviations are 19
    again = imagenet._training_crop(image, [3, 59], picture=64).numpy()
    assert np.array_equal(crop, again)


def test_a_pass_has_every_record_once(data_dir):
    train, validation, kept_out = imagenet.load(data_dir)
    assert (train.examples, validation.examples, kept_out) == (IMAGES, VALIDATION, None)
    assert train.classes == 1000 and len(train.files[0]) == 3
    one, same, other = (list(imagenet._shuffled(train, [0, seed]).as_numpy_iterator())
                        for seed in (1, 1, 2))
    assert one == same and one != other
    assert len(set(one)) == IMAGES and sorted(one) == sorted(other)


def test_held_out_images_are_in_no_batch(data_dir):
    train, _, kept_out = imagenet.load(data_dir, holdout=6)
    records = [set(imagenet._shuffled(split, [0, 0]).as_numpy_iterator())
               for split in (train, kept_out)]
    assert [len(found) for found in records] == [IMAGES - 6, 6] and not records[0] & records[1]
    with pytest.raises(ValueError, match="holdout=20: there are 20 training images"):
        imagenet.load(data_dir, holdout=20)


def batches(data_dir, seed, epoch, count):
    stream = imagenet.Stream(imagenet.load(data_dir)[0], 8, steps=3, seed=seed, picture=32)
    stream.begin(epoch)
    arguments = stream.for_fit()
    assert arguments["steps_per_epoch"] == len(stream) == 3
    return [(x.numpy(), y.numpy()) for x, y in arguments["x"].take(count)]


def equal(ours, theirs):
    return all(np.array_equal(a, b) for pair in zip(ours, theirs, strict=True)
               for a, b in zip(*pair, strict=True))


def test_batches_depend_on_seed_and_epoch_alone(data_dir):
    """3 batches of 8: 20 images, and 4 of them again; then the next epoch."""
    straight = batches(data_dir, seed=5, epoch=0, count=6)
    assert {(x.shape, y.shape) for x, y in straight} == {((8, 32, 32, 3), (8,))}
    labels = np.concatenate([y for _, y in straight[:3]])[:IMAGES]
    assert sorted(labels) == [0] * 10 + [1] * 10
    tf.random.set_seed(99)
    assert equal(batches(data_dir, seed=5, epoch=1, count=3), straight[3:])
    assert not equal(straight[:3], straight[3:])
    assert not equal(batches(data_dir, seed=6, epoch=0, count=3), straight[:3])


def test_evaluation_goes_through_all_pictures_in_order(data_dir):
    _, validation, _ = imagenet.load(data_dir)
    (pictures, labels), = imagenet.evaluation(validation, picture=32)
    assert pictures.shape == (VALIDATION, 32, 32, 3)
    names = [imagenet._parsed(validation, record) for record in
             tf.data.TFRecordDataset(validation.files[0])]
    assert labels.numpy().tolist() == [int(label) for _, label in names]
    with pytest.raises(ValueError, match="12 pictures cannot be shared evenly by 5 devices"):
        imagenet.evaluation(validation, devices=5)


def test_missing_data_names_the_commands(tmp_path):
    with pytest.raises(ValueError) as error:
        imagenet.load(tmp_path)
    said = str(error.value)
    assert f"ImageNet is not in {tmp_path}: there is no train and no validation split" in said
    assert f"ILSVRC2012_img_val.tar\n     into {tmp_path}/downloads/manual" in said
    assert (f"tfds.builder('imagenet2012', data_dir='{tmp_path}').download_and_prepare()" in said)
