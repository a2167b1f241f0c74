"""ResNet-50 on ImageNet: the network, the pictures, and whole runs on a tiny ImageNet."""

import csv
import io
import json
import math
import os
import pathlib
import subprocess
import sys
import tarfile
import textwrap

import keras
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds

import tf_sparsity as ts
from recipes import sos_resnet50_imagenet as recipe
from recipes.data import imagenet
from recipes.networks.resnet50 import resnet
from recipes.running import configuration, runner, sweep
from recipes.shared import sos

NAME = "sos_resnet50_imagenet"
PUBLISHED = pathlib.Path(recipe.__file__).parent / "published"
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
    model = resnet(decay=1e-4)
    report = ts.report(model)
    assert len(report.rows) == 54 and report.total("size") == 25_502_912
    assert [report.rows[0].name, report.rows[-1].name] == ["stem/kernel", "classes/kernel"]
    assert report.rows[-1].size == 2_048_000
    trained, averages = (sum(math.prod(v.shape) for v in variables) for variables in
                         (model.trainable_variables, model.non_trainable_variables))
    assert trained == 25_502_912 + 1_000 + 2 * 26_560 == 25_557_032
    assert averages == 2 * 26_560


def test_the_stride_is_in_the_convolution_of_3_x_3():
    model = resnet(width=2, picture=64)
    strided = [layer.name for layer in model.layers
               if isinstance(layer, keras.layers.Conv2D) and layer.strides == (2, 2)]
    assert strided == ["stem", *(f"stage{i}_block1_{name}" for i in (2, 3, 4)
                                 for name in ("conv2", "shortcut"))]
    # 64 halved by the stem, the pooling and three stages
    assert [model.get_layer(f"stage{i}_block1_conv3").output.shape[1:] for i in (1, 2, 3, 4)] == [
        (16, 16, 8), (8, 8, 16), (4, 4, 32), (2, 2, 64)]


def test_initial_weights_and_decay():
    model = resnet(14, width=16, picture=32, decay=0.5)
    conv = np.asarray(model.get_layer("stage4_block1_conv2").kernel)  # 147,456 weights
    # variance 1 / fan in = 1 / (9 x 128); truncated at two deviations of the normal they are from
    assert conv.std() == pytest.approx((9 * 128) ** -0.5, rel=0.02)
    assert np.abs(conv).max() <= 2 * (9 * 128) ** -0.5 / 0.8796
    last = np.asarray(model.get_layer("classes").kernel)
    assert last.std() == pytest.approx(0.01, rel=0.02)
    zero = [layer.name for layer in model.layers
            if isinstance(layer, keras.layers.BatchNormalization) and not np.any(layer.gamma)]
    assert len(zero) == 4 and all(name.endswith("_conv3_bn") for name in zero)
    assert {(layer.momentum, layer.epsilon) for layer in model.layers
            if isinstance(layer, keras.layers.BatchNormalization)} == {(0.9, 1e-5)}
    kernels = [row.name.removesuffix("/kernel") for row in ts.report(model).rows]
    squares = sum(np.square(np.asarray(model.get_layer(name).kernel, "float64")).sum()
                  for name in kernels)
    # half of the squares of the kernels, and of nothing else; sums of 18 in float32
    assert float(sum(model.losses)) == pytest.approx(0.5 / 2 * squares, rel=1e-5)
    sparse = ts.sparsify(model, ts.RandomPruning(ts.ConstantSparsity(0.5, 0), seed=0))
    ts.update(sparse)  # the paper decays pruned weights too
    assert float(sum(sparse.losses)) == pytest.approx(0.5 / 2 * squares, rel=1e-5)
    assert resnet(14, width=1, picture=32).losses == []
    with pytest.raises(ValueError, match="depth is one of 14, 26, 50, 101, 152. Received: "
                                         "depth=18"):
        resnet(18)


# ---- pictures


def test_the_center_crop():
    """Half of the shorter side, 32 of 64 pixels: nothing is resized, and the window is exact."""
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
    shared = imagenet.evaluation(validation, picture=32, devices=2)
    assert [len(labels) for _, labels in shared] == [12]  # 6 and 6, not 12 and none
    with pytest.raises(ValueError, match="12 pictures cannot be shared evenly by 5 devices"):
        imagenet.evaluation(validation, devices=5)


def test_missing_data_names_the_commands(tmp_path):
    with pytest.raises(ValueError) as error:
        imagenet.load(tmp_path)
    said = str(error.value)
    assert f"ImageNet is not in {tmp_path}: there is no train and no validation split" in said
    assert f"ILSVRC2012_img_val.tar\n     into {tmp_path}/downloads/manual" in said
    assert (f"tfds.builder('imagenet2012', data_dir='{tmp_path}').download_and_prepare()" in said)


# ---- settings


def configured(*words):
    return runner.parse(NAME, words)[1]


def published(name):
    with open(PUBLISHED / f"{name}.csv", newline="") as file:
        return [{key.strip(): float(value) for key, value in row.items()}
                for row in csv.DictReader(file)]


@pytest.mark.parametrize("technique, file, sparsity", [
    ("magnitude", "rn50_magnitude_pruning", "Sparsity"),
    ("random", "rn50_random_pruning", "Target Sparsity")])
def test_the_default_is_the_best_published_run(technique, file, sparsity):
    rows = published(file)
    levels = sorted({row[sparsity] for row in rows})
    assert levels == [0.5, 0.7, 0.8, 0.9, 0.95, 0.98]
    for level in levels:
        best = max((row for row in rows if row[sparsity] == level), key=lambda r: r["accuracy"])
        c = configured(f"technique={technique}", f"sparsity={level}")
        assert (c.epochs, c.epoch_steps) == (100, 1280)  # 128,000 steps
        assert [c.pruning_begin * 128_000, c.pruning_end * 128_000, c.frequency,
                c.label_smoothing] == [best[key] for key in
                                       ("begin", "end", "freq", "label smoothing")], level
    assert len(levels) == len({"magnitude": recipe.MAGNITUDE, "random": recipe.RANDOM}[technique])


def test_variational_dropout_has_published_settings():
    """A run of the CSV each, within half a point of the sparsity; but that of 0.95 is in none."""
    rows = published("rn50_variational_dropout")
    for level in (0.5, 0.7, 0.8, 0.9, 0.98):
        c = configured("technique=variational_dropout", f"sparsity={level}")
        begin, end = (round(share * 128_000) for share in
                      (c.warm_up_begin, c.warm_up_begin + c.warm_up))
        same = [row for row in rows if (row["DKL loss begin"], row["DKL loss saturate"],
                                        row["label_smoothing"]) == (begin, end, c.label_smoothing)
                and row["DKL loss coeff"] * 1_281_167 == pytest.approx(c.scale, rel=1e-6)]
        assert any(abs(row["global sparsity"] - level) < 0.006 for row in same), level
        assert (c.reach, c.threshold, c.log_sigma2) == ("penalty", 0.5, -15.0)
    c = configured("technique=variational_dropout", "sparsity=0.95")
    assert (c.scale, c.label_smoothing, c.warm_up_begin * 128_000) == (0.5, 0.1, 40_000)


def test_masks_are_those_of_the_published_tickets_and_scratch_runs():
    for file, techniques in (("rn50_lottery_ticket", ["lottery"]),
                             ("rn50_scratch_lr_scaled", ["scratch_e", "scratch_b"])):
        for row in published(file) if file.endswith("ticket") else scratch_rows():
            for technique in techniques:
                c = configured(f"technique={technique}", f"sparsity={row['sparsity']:g}")
                assert [c.pruning_begin * 128_000, c.pruning_end * 128_000, c.frequency,
                        c.label_smoothing] == [row[key] for key in
                                               ("begin", "end", "freq", "label smoothing")]


def scratch_rows():
    with open(PUBLISHED / "rn50_scratch_lr_scaled.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["time multiplier"] for row in rows} == {"1", "2"} and sos.BUDGET == 2
    keys = ("sparsity", "begin", "end", "freq", "label smoothing")
    return [{key: float(row[key]) for key in keys} for row in rows]


def test_l0_has_the_published_grid_and_says_that_it_fails():
    """In the file the headings of label smoothing and weight decay have changed places."""
    rows = published("rn50_l0_regularization")
    best = max(rows, key=lambda row: row["accuracy"])
    assert (best["accuracy"], best["global_sparsity"]) == (pytest.approx(0.405, abs=1e-4), 0)
    sparse = [row for row in rows if row["global_sparsity"] > 0]
    assert max(row["accuracy"] for row in sparse) < 0.04
    c = configured("technique=l0")
    assert c.scale / 1_281_167 == pytest.approx(best["l0_norm_weight"], rel=1e-6)
    assert c.label_smoothing == best["weight_decay"] == 0
    assert c.decay == pytest.approx(best["label_smoothing"], rel=1e-4)
    assert recipe.remarks(c) == [recipe.L0_FAILS]
    tried = {(round(math.log(keep / (1 - keep)), 3), scale) for keep, scales in
             recipe.L0_SCALES.items() for scale in scales}
    theirs = {(row["initial_log_alpha"], round(row["l0_norm_weight"] * 1_281_167)) for row in rows}
    assert tried == theirs


def test_the_grid_holds_every_published_run():
    grid = set(sweep.Sweep(NAME, []).grid)

    def words(*given):
        return " ".join(configuration.words(configured(*given)))

    for technique, file, sparsity in (("magnitude", "rn50_magnitude_pruning", "Sparsity"),
                                      ("random", "rn50_random_pruning", "Target Sparsity")):
        for row in published(file):
            assert words(f"technique={technique}", f"sparsity={row[sparsity]:g}",
                         f"pruning_begin={row['begin'] / 128_000}",
                         f"pruning_end={row['end'] / 128_000}", f"frequency={row['freq']:.0f}",
                         f"label_smoothing={row['label smoothing']}") in grid
    for row in published("rn50_variational_dropout"):
        begin, end = row["DKL loss begin"], row["DKL loss saturate"]
        scale = f"{row['DKL loss coeff'] * 1_281_167:.4g}"
        assert words("technique=variational_dropout", f"scale={scale}",
                     f"warm_up_begin={begin / 128_000}", f"warm_up={(end - begin) / 128_000}",
                     f"label_smoothing={row['label_smoothing']}") in grid


def test_what_is_given_wins_and_the_batch_scales_the_rest():
    usual = configured()
    assert (usual.batch, usual.rate, usual.frequency) == (1024, 0.4, 2000)
    c = configured("batch=256")  # a quarter of the batch: four times the steps, a quarter the rate
    assert (c.epoch_steps, c.rate, c.frequency) == (5120, 0.1, 8000)
    assert (c.pruning_begin, c.pruning_end) == (usual.pruning_begin, usual.pruning_end)
    c = configured("batch=256", "rate=0.3", "frequency=50", "pruning_end=1", "label_smoothing=0")
    assert (c.rate, c.frequency, c.pruning_end, c.label_smoothing) == (0.3, 50, 1.0, 0.0)
    assert configuration.words(configured("epochs=10")) == ["epochs=10"]
    assert configured("epochs=10").frequency == 200  # of a run of a tenth
    # 48,000 steps of 4,096 pictures: 192,000 of 1,024
    c = configured("distribution=extended", "sparsity=0.965")
    assert (c.epochs, c.epochs * c.epoch_steps, c.frequency) == (150, 192_000, 2000)
    c = configured("distribution=extended", "batch=4096", "sparsity=0.95")
    steps = c.epochs * c.epoch_steps
    assert (steps, c.frequency) == (48_000, 1000)
    assert [round(share * steps) for share in (c.pruning_begin, c.pruning_end)] == [7500, 36_000]
    (said,) = recipe.remarks(configured("sparsity=0.6"))
    assert "No setting of magnitude is published at a sparsity of 0.6" in said
    assert recipe.remarks(usual) == recipe.remarks(configured("technique=dense")) == []


def test_the_extended_map_has_the_published_sparsities():
    """First kernel dense, last at 0.8, all others as published: together 79.97, 90.08, ... %."""
    sizes = {row.name: row.size for row in ts.report(resnet()).rows}
    for sparsity, together in ((0.8, 0.7997), (0.9, 0.9008), (0.95, 0.9468), (0.965, 0.9652)):
        asked, fixed = sos.extended(sizes, sparsity, "^stem/", "^classes/",
                                    recipe.OTHERS[sparsity])
        assert asked == recipe.OTHERS[sparsity] and fixed == {"^stem/": 0.0, "^classes/": 0.8}
        others = sum(sizes.values()) - sizes["stem/kernel"] - sizes["classes/kernel"]
        zeros = recipe.OTHERS[sparsity] * others + 0.8 * sizes["classes/kernel"]
        assert zeros / sum(sizes.values()) == pytest.approx(together, abs=6e-5)


def test_the_rate_rises_for_5_passes_and_falls_after_30_60_and_80():
    rate = recipe.rate(configured(), 128_000)
    epoch = 1_281_167 / 1024  # 1,251.1 steps
    at = [float(rate(round(passes * epoch))) for passes in
          (0, 2.5, 5, 29.9, 30.1, 59.9, 60.1, 79.9, 80.1, 102)]
    assert at == pytest.approx([0, 0.2, 0.4, 0.4, 0.04, 0.04, 0.004, 0.004, 4e-4, 4e-4], rel=1e-3)
    stretched = recipe.rate(configured(), 256_000)  # scratch_b
    assert float(stretched(round(59.9 * epoch))) == pytest.approx(0.4)
    again = recipe.RiseAndFalls.from_config(rate.get_config())
    assert float(again(1000)) == float(rate(1000))


def test_the_optimizer():
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(3)])
    recipe.compile(configured(), model, 128_000)
    sgd = model.optimizer
    assert sgd.nesterov and sgd.momentum == 0.9 and sgd.weight_decay is None
    assert model.loss.share == 0.1


def test_label_smoothing():
    """Of 4 classes, a share of 0.2: the right one is asked for with 0.85, the others with 0.05."""
    logits = np.array([[2.0, 1.0, 0.0, -1.0]], "float32")
    log_p = logits[0] - np.log(np.exp(logits[0]).sum())
    loss = recipe.Smoothed(0.2)(np.array([1]), logits)
    assert float(loss) == pytest.approx(-(0.05 * log_p.sum() + 0.8 * log_p[1]), rel=1e-6)


# ---- whole runs

# 20 pictures; 3 steps in an epoch
TINY = ("depth=14", "width=4", "picture=32", "batch=8", "epoch_images=24", "epochs=3",
        "tensorboard=no")


@pytest.fixture
def run(tmp_path, data_dir):
    def run(*words, callbacks=(), folder=tmp_path):
        options, c = runner.parse(NAME, [*TINY, *words, f"runs_dir={folder}",
                                         f"data_dir={data_dir}"])
        return runner.run(NAME, c, options, callbacks)

    return run


def test_a_dense_run(run):
    record = run("technique=dense", "holdout=4")
    assert record["report"]["steps"] == 9 and len(record["epochs"]) == 3
    assert {"accuracy", "holdout_accuracy"} <= set(record["report"])
    assert record["epochs"][-1]["val_accuracy"] == record["report"]["holdout_accuracy"]
    assert record["differences"] == [d.sentence for d in recipe.DIFFERENCES if not d.among]
    losses = [epoch["loss"] for epoch in record["epochs"]]
    assert losses[0] > losses[1] > losses[2]


def test_an_extended_run(run):
    record = run("distribution=extended", "sparsity=0.95")
    kernels = record["report"]["kernels"]
    assert [kernels[i]["name"] for i in (0, -1)] == ["stem/kernel", "classes/kernel"]
    assert [kernels[i]["zeros"] for i in (0, -1)] == [0, 102_400]  # of 128 x 1,000
    for kernel in kernels[1:-1]:
        assert abs(kernel["zeros"] - 0.96 * kernel["size"]) <= 0.5, kernel["name"]


def test_a_run_of_variational_dropout(run):
    record = run("technique=variational_dropout", "sparsity=0.5")
    assert 0 < record["report"]["sparsity"] < 0.2  # nine steps; what the penalty has led to
    assert record["configuration"]["scale"] == 0.01


@pytest.mark.any_backend
@pytest.mark.slow
def test_an_interrupted_run_goes_on_bit_for_bit(run, tmp_path):
    straight = run("sparsity=0.8", folder=tmp_path / "straight")
    with pytest.raises(KeyboardInterrupt):
        run("sparsity=0.8", callbacks=[Leave(epoch=2)])
    resumed = run("sparsity=0.8")
    assert resumed["sessions"] == 2 and resumed["report"] == straight["report"]
    seconds = [[epoch.pop("seconds") for epoch in record["epochs"]]
               for record in (straight, resumed)]
    assert len(seconds[0]) == 3 and resumed["epochs"] == straight["epochs"]
    zeros, size = (straight["report"][key] for key in ("zeros", "size"))
    assert zeros == pytest.approx(0.8 * size, abs=len(straight["report"]["kernels"]) / 2)


class Leave(keras.callbacks.Callback):
    """Leaves training in the second step of an epoch."""

    def __init__(self, epoch):
        super().__init__()
        self.at = epoch

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch

    def on_train_batch_end(self, batch, logs=None):
        if (self.epoch, batch) == (self.at, 1):
            raise KeyboardInterrupt


# ---- several devices

TWO = """
    import os, sys
    os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=2"
    import tensorflow as tf
    half = tf.config.LogicalDeviceConfiguration()
    tf.config.set_logical_device_configuration(
        tf.config.list_physical_devices("CPU")[0], [half, half])
    from recipes.__main__ import main
    sys.exit(max(main(["run", *sys.argv[1:], f"devices={devices}"]) for devices in (1, 2)))
"""


@pytest.mark.slow
@pytest.mark.parametrize("backend, technique", [
    ("jax", "magnitude"), ("jax", "variational_dropout"), ("tensorflow", "lottery"),
    ("tensorflow", "variational_dropout")])
def test_two_devices_share_a_batch(tmp_path, data_dir, backend, technique):
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(TWO), NAME, *TINY, f"technique={technique}",
         "sparsity=0.8", f"runs_dir={tmp_path}", f"data_dir={data_dir}"],
        cwd=PUBLISHED.parent.parent, capture_output=True, text=True, timeout=900,
        env={**os.environ, "KERAS_BACKEND": backend, "TF_ENABLE_ONEDNN_OPTS": "0"})
    assert done.returncode == 0, done.stderr[-3000:]
    records = [json.loads(path.read_text()) for path in tmp_path.glob("*/*/record.json")]
    one, two = (next(r for r in records if r["configuration"]["devices"] == count and
                     r["configuration"]["technique"] == technique) for count in (1, 2))
    if technique != "variational_dropout":  # the same sums in another order; 9 steps
        assert two["report"]["zeros"] == one["report"]["zeros"]
        assert [epoch["loss"] for epoch in two["epochs"]] == pytest.approx(
            [epoch["loss"] for epoch in one["epochs"]], rel=1e-3)
    assert two["report"]["sparsity"] > 0


def test_a_batch_that_devices_cannot_share_is_refused(run):
    with pytest.raises(ValueError, match="batch=8 cannot be shared evenly by devices=3. Near is "
                                         "batch=6"):
        run("technique=dense", "devices=3")
    with pytest.raises(ValueError, match="devices=4: there are 1. Give devices=1 or fewer"):
        run("technique=dense", "devices=4")


# ---- the full network


@pytest.mark.slow
@pytest.mark.parametrize("technique", ["dense", "magnitude", "variational_dropout"])
def test_a_step_of_the_full_network(data_dir, tmp_path, technique):
    """Steps of 8 pictures of 224 x 224, in a process of its own: its memory is its own."""
    done = subprocess.run(
        [sys.executable, "-m", "recipes", "run", NAME, f"technique={technique}", "batch=8",
         "epoch_images=8", "epochs=2", "tensorboard=no", f"runs_dir={tmp_path}",
         f"data_dir={data_dir}"], cwd=PUBLISHED.parent.parent, capture_output=True, text=True,
        timeout=1800, env={**os.environ, "KERAS_BACKEND": keras.config.backend()})
    assert done.returncode == 0, done.stderr[-3000:]
    (path,) = tmp_path.glob("*/*/record.json")
    record = json.loads(path.read_text())
    assert record["report"]["size"] == 25_502_912
    gigabytes = {key: value and round(value / 1e9, 2)
                 for key, value in record["peak_memory"].items()}
    print(f"{technique}: a step of 8 pictures and an evaluation of 12, compiled before: "
          f"{record['epochs'][1]['seconds']} s; with compilation "
          f"{record['epochs'][0]['seconds']} s; peak memory {gigabytes} GB")
    assert np.isfinite(record["epochs"][1]["loss"])
