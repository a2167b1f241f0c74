"""SparsityTensorBoard: the event files read back, number by number."""

import builtins

import keras
import numpy as np
import pytest
import tensorflow as tf
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import tf_sparsity as ts
from tf_sparsity.tensorboard import IMAGE_SIDE, _iou, _picture

pytestmark = pytest.mark.any_backend
X, Y = np.ones((12, 4), "float32"), np.ones((12, 4), "float32")
# 16 weights; 3 batches an epoch: 8 zeros at step 2, 10 at step 4, 12 at step 6.
METHOD = ts.MagnitudePruning(ts.PolynomialDecay(0.5, 0.75, 2, 6, power=1, frequency=2))


def compiled(host, method=METHOD, **kwargs):
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(4, use_bias=False, name="a")])
    model.layers[0].kernel.assign(np.arange(1, 17).reshape(4, 4) / 16)
    if host == "optimizer":
        model.compile(ts.SparseOptimizer(keras.optimizers.SGD(0.0), method), "mse", **kwargs)
    else:
        model = ts.sparsify(model, method)
        model.compile(keras.optimizers.SGD(0.0), "mse", **kwargs)
    return model


def fit(model, callback, epochs=2, **kwargs):
    model.fit(X, Y, batch_size=4, epochs=epochs, verbose=0,
              callbacks=[ts.callbacks.SparsityUpdate(), callback], **kwargs)


def events(log_dir):
    accumulator = EventAccumulator(str(log_dir / "sparsity"), size_guidance={"tensors": 0})
    return accumulator.Reload()


def scalars(log_dir):
    """{tag: [(step, value)]}"""
    accumulator = events(log_dir)
    return {tag: [(e.step, float(tf.make_ndarray(e.tensor_proto)))
                  for e in accumulator.Tensors(tag)]
            for tag in accumulator.Tags()["tensors"] if tag.split("/")[0] not in
            ("weights", "mask", "learned")}


@pytest.mark.parametrize("host", ["layer", "optimizer"])
def test_scalars_at_every_epoch_the_last_included(host, tmp_path):
    fit(compiled(host), ts.callbacks.SparsityTensorBoard(tmp_path))
    assert scalars(tmp_path) == {
        "sparsity/global": [(3, 0.5), (6, 0.75)],
        "sparsity/a/kernel": [(3, 0.5), (6, 0.75)],
        "target/global": [(3, 0.5625), (6, 0.75)],
        "target/a/kernel": [(3, 0.5625), (6, 0.75)],
        "mask_iou/a/kernel": [(6, 0.5)],  # of 8 kept weights 4 are left
        "mask_change/a/kernel": [(6, 0.5)]}


@pytest.mark.parametrize("host", ["layer", "optimizer"])
def test_update_freq_logs_between_the_epochs(host, tmp_path):
    fit(compiled(host), ts.callbacks.SparsityTensorBoard(tmp_path, update_freq=2))
    assert scalars(tmp_path)["sparsity/global"] == [(2, 0.5), (3, 0.5), (4, 0.625), (6, 0.75)]


@pytest.mark.filterwarnings("ignore:MagnitudePruning ends its schedule")
def test_the_steps_go_on_over_fits_and_recompiling(tmp_path):
    model, callback = compiled("layer"), ts.callbacks.SparsityTensorBoard(tmp_path, update_freq=4)
    fit(model, callback, epochs=1)
    model.compile(keras.optimizers.SGD(0.0), "mse")
    fit(model, callback, epochs=1)
    # Each fit writes a file of its own. Within one second their names, by which the reader orders
    # them, end in a counter without leading zeros.
    accumulator = events(tmp_path)
    assert sorted(e.step for e in accumulator.Tensors("sparsity/global")) == [3, 4, 6]
    assert sorted(e.step for e in accumulator.Tensors("mask_iou/a/kernel")) == [4, 6]


def test_steps_per_execution(tmp_path):
    model = compiled("layer", steps_per_execution=3)
    fit(model, ts.callbacks.SparsityTensorBoard(tmp_path, update_freq=2))
    assert scalars(tmp_path)["sparsity/global"] == [(3, 0.5625), (6, 0.75)]


def test_global_pruning_has_one_target(tmp_path):
    method = ts.MagnitudePruning(ts.ConstantSparsity(0.5, 1), distribution="global")
    fit(compiled("layer", method), ts.callbacks.SparsityTensorBoard(tmp_path), epochs=1)
    found = scalars(tmp_path)
    assert found["target/global"] == [(3, 0.5)]
    assert "target/a/kernel" not in found


def test_annealed_numbers_are_logged(tmp_path):
    method = ts.ContinuousSparsification(anneal_steps=6, final_beta=64.0, s0=0.1, frequency=3)
    fit(compiled("layer", method), ts.callbacks.SparsityTensorBoard(tmp_path))
    assert scalars(tmp_path)["state/a/kernel/beta"] == [(3, 8.0), (6, 64.0)]


def test_what_learned_methods_watch(tmp_path):
    """A learning rate of 0 leaves the state at its start. theta is 1/16 to 16/16, so that
    log alpha = -10 - log(theta^2 + 1e-8) is -4.4548 to -10."""
    method = ts.VariationalDropout(12, scale=6.0, ramp=ts.Ramp(0, 6, frequency=1))
    fit(compiled("layer", method), ts.callbacks.SparsityTensorBoard(tmp_path / "vd"))
    found = scalars(tmp_path / "vd")
    assert found["state/a/kernel/coefficient"] == [(3, 0.25), (6, 0.5)]  # 6 / 12 * step / 6
    log_alpha = np.clip(-10 - np.log((np.arange(1, 17) / 16) ** 2 + 1e-8), -8, 8)
    kl = (0.63576 - 0.63576 / (1 + np.exp(-1.8732 - 1.48695 * log_alpha))
          + np.log1p(np.exp(-log_alpha)) / 2)
    np.testing.assert_allclose([v for _, v in found["state/a/kernel/penalty"]],
                               [kl.sum() / 4, kl.sum() / 2], rtol=1e-5)  # float32
    last = events(tmp_path / "vd").Tensors("learned/a/kernel/log_alpha")[-1]
    buckets = tf.make_ndarray(last.tensor_proto)
    assert buckets[:, 2].sum() == 16
    np.testing.assert_allclose([buckets[0, 0], buckets[-1, 1]], [-10, -10 + 2 * np.log(16)],
                               rtol=1e-5)

    method = ts.L0Regularization(12, group="in", initial_keep=0.9, target_sparsity=0.5)
    fit(compiled("layer", method), ts.callbacks.SparsityTensorBoard(tmp_path / "l0"))
    found = scalars(tmp_path / "l0")
    # P(z != 0) at log alpha = 2.197 is 0.97803; four gates spread by 0.01 around it
    np.testing.assert_allclose(found["state/a/kernel/expected_l0"][-1][1], 0.97803, atol=5e-4)
    assert found["sparsity/global"][-1] == (6, 0.5) and found["target/global"][-1] == (6, 0.5)
    assert found["natural/global"][-1] == (6, 0.0)

    method = ts.ContinuousSparsification(6, final_beta=64.0, s0=0.1, frequency=1)
    fit(compiled("layer", method), ts.callbacks.SparsityTensorBoard(tmp_path / "cs"))
    found = scalars(tmp_path / "cs")
    # beta s = 8 * 0.1 at step 3, 6.4 at step 6
    assert found["state/a/kernel/transition_fraction"] == [(3, 1.0), (6, 0.0)]
    assert "natural/global" not in found


def test_the_loss_without_penalties_is_logged(tmp_path):
    """Without SparsityLogger too: SparsityUpdate puts it into the logs."""
    method = ts.ContinuousSparsification(6, s0=0.1, scale=0.01)
    model = compiled("layer", method)
    history = model.fit(X, Y, batch_size=4, epochs=2, verbose=0, validation_data=(X, Y),
                        callbacks=[ts.callbacks.SparsityUpdate(),
                                   ts.callbacks.SparsityTensorBoard(tmp_path)]).history
    found = scalars(tmp_path)
    for name in ("data_loss", "val_data_loss"):
        assert found[name] == [(3, np.float32(history[name][0])), (6, np.float32(history[name][1]))]
    assert (np.array(history["loss"]) > history["data_loss"]).all()


def test_histograms_are_of_the_kept_weights(tmp_path):
    fit(compiled("layer"), ts.callbacks.SparsityTensorBoard(tmp_path, histogram_freq=4), epochs=5)
    found = events(tmp_path).Tensors("weights/a/kernel")
    assert [e.step for e in found] == [12, 15]  # the fourth epoch and the last
    buckets = tf.make_ndarray(found[-1].tensor_proto)  # left, right, count
    assert buckets[:, 2].sum() == 4
    assert buckets[0, 0] == 13 / 16 and buckets[-1, 1] == 16 / 16


def test_no_histograms_and_no_images_unless_asked(tmp_path):
    fit(compiled("layer"), ts.callbacks.SparsityTensorBoard(tmp_path, histogram_freq=0))
    assert not [tag for tag in events(tmp_path).Tags()["tensors"]
                if tag.startswith(("weights", "mask/"))]


def test_images_show_the_mask(tmp_path):
    fit(compiled("optimizer"), ts.callbacks.SparsityTensorBoard(tmp_path, images=True))
    found = events(tmp_path).Tensors("mask/a/kernel")
    assert [e.step for e in found] == [3, 6]
    width, height, png = tf.make_ndarray(found[-1].tensor_proto)
    assert (width, height) == (b"4", b"4")
    pixels = tf.io.decode_png(png).numpy()[..., 0]
    np.testing.assert_array_equal(pixels, [[0] * 4] * 3 + [[255] * 4])


def test_picture_of_a_large_mask():
    """Axes but the last are rows; a pixel of a mask that is too large is the fraction kept."""
    assert _picture(np.ones((3, 2, 5, 7))).shape == (30, 7)
    mask = np.ones((3 * IMAGE_SIDE // 2, 1))
    mask[0] = 0  # two weights to a pixel, the first of which is half empty
    picture = _picture(mask)
    assert picture.shape == (3 * IMAGE_SIDE // 4, 1)
    assert picture[0] == 0.5 and (picture[1:] == 1).all()
    ragged = _picture(np.ones((2 * IMAGE_SIDE + 1, 2)))
    assert ragged.shape == (683, 2) and (ragged == 1).all()  # ceil(2049 / 3) rows


def test_iou_by_hand():
    a, b = np.array([1, 1, 0, 0], bool), np.array([1, 0, 1, 0], bool)
    assert _iou(a, b) == 1 / 3
    assert _iou(a, a) == 1.0
    assert _iou(a, ~a) == 0.0
    assert _iou(a & ~a, a & ~a) == 1.0


def test_a_plain_model_is_logged_too(tmp_path):
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(4, name="a")])
    kernel = np.ones((4, 4))
    kernel[0] = 0
    model.layers[0].kernel.assign(kernel)
    model.compile(keras.optimizers.SGD(0.0), "mse")
    model.fit(X, Y, batch_size=4, verbose=0,
              callbacks=[ts.callbacks.SparsityTensorBoard(tmp_path)])
    assert scalars(tmp_path) == {"sparsity/global": [(3, 0.25)], "sparsity/a/kernel": [(3, 0.25)]}


class Watched(ts.callbacks.SparsityTensorBoard):
    """Counts how often it reads its model between two steps."""

    touched = in_batches = 0

    @property
    def model(self):
        self.touched += 1
        return super().model

    def on_train_batch_end(self, batch, logs=None):
        before = self.touched
        super().on_train_batch_end(batch, logs)
        self.in_batches += self.touched - before


def test_the_model_is_touched_only_when_something_is_logged(tmp_path):
    callback = Watched(tmp_path, update_freq=100)
    fit(compiled("layer"), callback)
    assert callback.touched > 0 and callback.in_batches == 0
    callback = Watched(tmp_path, update_freq=2)
    fit(compiled("layer"), callback)
    assert callback.in_batches > 0


@pytest.mark.parametrize("arguments, message", [
    ({"update_freq": 0}, "update_freq is .* Received: update_freq=0"),
    ({"update_freq": "batch"}, "Received: update_freq='batch'"),
    ({"update_freq": True}, "Received: update_freq=True"),
    ({"histogram_freq": -1}, "histogram_freq is .* Received: histogram_freq=-1")])
def test_arguments_out_of_range(arguments, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        ts.callbacks.SparsityTensorBoard(tmp_path, **arguments)


@pytest.mark.parametrize("absent", ["tensorflow", "tensorboard"])
def test_without_tensorflow_it_says_what_to_install(absent, tmp_path, monkeypatch):
    original = builtins.__import__

    def blocked(name, *args, **kwargs):
        if name == absent:
            raise ImportError(name)
        return original(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", blocked)
    with pytest.raises(ImportError, match="pip install tensorflow tensorboard"):
        ts.callbacks.SparsityTensorBoard(tmp_path)
