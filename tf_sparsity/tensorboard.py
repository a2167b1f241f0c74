"""SparsityTensorBoard: how sparsity, masks and kept weights develop, as TensorBoard shows it."""

import os

import keras
import numpy as np
from keras import ops

from tf_sparsity.report import (counted, entries_of, global_target, kept, natural_sparsity,
                                stored_step, targets)

DATA_LOSSES = {"data_loss", "val_data_loss"}  # what SparsityUpdate puts into the logs
IMAGE_SIDE = 1024  # pixels; a larger mask is shown in blocks of several weights per pixel


class SparsityTensorBoard(keras.callbacks.Callback):
    r"""Writes what TensorBoard needs to show a model becoming sparse.

    Tags, for each sparsified kernel (every kernel of a plain model) by its path:

    - `sparsity/global`, `sparsity/<path>`: fraction of zeros;
    - `target/global`, `target/<path>`: what the schedule asks for, where it asks;
    - `mask_iou/<path>`: $|K \cap K'| / |K \cup K'|$ of the kept weights K now and K' when they
      were last logged (1 where both are empty), and `mask_change/<path>`: 1 - IoU. From the
      second time on;
    - `state/<path>/<name>`: annealed numbers, such as a method's `beta`, and what a learned
      method watches: `penalty`, its `coefficient`, the `threshold` that prunes, `expected_l0`
      (L0: the share of gates that is open), `transition_fraction` (continuous sparsification: the
      share of |beta s| < 4);
    - `learned/<path>/<name>`: histogram of `log_alpha` or `s`;
    - `data_loss`, `val_data_loss`: the loss of the epoch without penalties;
    - `natural/global`: the sparsity without the rank that `target_sparsity` asks for;
    - `weights/<path>`: histogram of the kept weights;
    - `mask/<path>`: an image of the mask, white where a weight is kept. Rows are all axes but
      the last, columns the last one.

    The x axis is the step: optimizer updates over the model's life. List this callback after
    `SparsityUpdate`, so that it sees the masks of the step that it logs.

    Args:
      log_dir: folder of the run; the event file is in `log_dir/sparsity`.
      update_freq: "epoch" (the end of every epoch, the last included), or an integer >= 1: every
        so many steps as well. The model is touched only when something is logged.
      histogram_freq: epochs between two sets of histograms, an integer >= 0; 0 is none. The last
        epoch has one too.
      images: write the images, at the end of every epoch.

    Raises:
      ImportError: without TensorFlow and TensorBoard, on any Keras backend.
      ValueError: for arguments outside their range.

    Example:

    ```python
    import tempfile
    import keras
    import numpy as np
    import tf_sparsity as ts
    model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(4)])
    model = ts.sparsify(model, ts.MagnitudePruning(ts.ConstantSparsity(0.5, begin_step=1)))
    model.compile("sgd", "mse")
    log_dir = tempfile.mkdtemp()
    model.fit(np.ones((16, 8)), np.ones((16, 4)), batch_size=4, verbose=0,
              callbacks=[ts.callbacks.SparsityUpdate(),
                         ts.callbacks.SparsityTensorBoard(log_dir, images=True)])
    ```

    Deviations from TFMOT's PruningSummaries: it writes sparsity and threshold of each layer at
    the beginning of an epoch, so that the last epoch is missing and the first is all zero; this
    one writes at the end, by step, on both hosts, with target, change, histogram and image.
    """

    def __init__(self, log_dir, *, update_freq="epoch", histogram_freq=1, images=False):
        super().__init__()
        if update_freq != "epoch" and not _is_integer(update_freq, 1):
            raise ValueError('update_freq is "epoch" or a number of steps, an integer >= 1. '
                             f"Received: update_freq={update_freq!r}")
        if not _is_integer(histogram_freq, 0):
            raise ValueError("histogram_freq is a number of epochs, an integer >= 0. "
                             f"Received: histogram_freq={histogram_freq!r}")
        self.tf = _tensorflow()
        self.log_dir = os.path.join(os.fspath(log_dir), "sparsity")
        self.update_freq, self.histogram_freq, self.images = update_freq, histogram_freq, images
        self.writer = None
        self.logged = 0  # the last step with scalars
        self.masks = {}  # kernel path -> what was kept then

    def set_model(self, model):
        if model is not self._model:
            self.logged, self.masks = 0, {}
        super().set_model(model)

    def on_train_begin(self, logs=None):
        self.writer = self.tf.summary.create_file_writer(self.log_dir)
        self.base = None

    def on_epoch_begin(self, epoch, logs=None):
        if self.base is None:  # other callbacks have loaded their checkpoints by now
            self.logged = max(stored_step(self.model), self.logged)
            self.base = self.logged - self._iterations()
        self.epoch_base = self._step()

    def on_train_batch_end(self, batch, logs=None):
        # An upper bound of the step, as in SparsityUpdate; the model is read only if it is due.
        if self._due(self.epoch_base + batch + 1) and self._due(self._step()):
            self._write_scalars(self._step())
            self.writer.flush()

    def on_epoch_end(self, epoch, logs=None):
        step = self._step()
        if step > self.logged:
            self._write_scalars(step)
        with self.writer.as_default(step):
            for name in DATA_LOSSES & (logs or {}).keys():
                self.tf.summary.scalar(name, logs[name])
        last = epoch + 1 == self.params.get("epochs")
        if self.histogram_freq and (last or (epoch + 1) % self.histogram_freq == 0):
            self._write_histograms(step)
        if self.images:
            self._write_images(step)
        self.writer.flush()

    def on_train_end(self, logs=None):
        self.writer.close()

    def _iterations(self):
        return int(ops.convert_to_numpy(self.model.optimizer.iterations))

    def _step(self):
        return self.base + self._iterations()

    def _due(self, step):
        return self.update_freq != "epoch" and \
            step // self.update_freq > self.logged // self.update_freq

    def _write_scalars(self, step):
        entries = counted(entries_of(self.model))
        scalars, size, zeros = {}, 0, 0
        for e in entries:
            path, mask = e.kernel.path, kept(e) != 0
            here = mask.size - int(np.count_nonzero(mask))
            size, zeros = size + mask.size, zeros + here
            scalars[f"sparsity/{path}"] = here / mask.size
            if path in self.masks:
                iou = _iou(mask, self.masks[path])
                scalars[f"mask_iou/{path}"], scalars[f"mask_change/{path}"] = iou, 1 - iou
            self.masks[path] = mask
            scalars.update({f"state/{path}/{name}": float(ops.convert_to_numpy(value))
                            for name, value in _watched(e).items() if len(value.shape) == 0})
        natural = natural_sparsity(entries)
        if natural is not None:
            scalars["natural/global"] = natural
        scalars["sparsity/global"] = zeros / size if size else 0.0
        asked = targets(entries, step)
        scalars.update({f"target/{e.kernel.path}": asked[id(e.variable)]
                        for e in entries if id(e.variable) in asked})
        target = global_target(entries, step)
        if target is not None:
            scalars["target/global"] = target
        with self.writer.as_default(step):
            for tag, value in scalars.items():
                self.tf.summary.scalar(tag, value)
        self.logged = step

    def _write_histograms(self, step):
        with self.writer.as_default(step):
            for e in counted(entries_of(self.model)):
                self.tf.summary.histogram(f"weights/{e.kernel.path}", _weight(e)[kept(e) != 0])
                for name, value in _watched(e).items():
                    if len(value.shape):
                        self.tf.summary.histogram(f"learned/{e.kernel.path}/{name}",
                                                  ops.convert_to_numpy(value))

    def _write_images(self, step):
        with self.writer.as_default(step):
            for e in counted(entries_of(self.model)):
                self.tf.summary.image(f"mask/{e.kernel.path}", _picture(kept(e))[None, ..., None])


def _weight(entry):
    """What the layer computes with, float32."""
    weight = ops.convert_to_tensor(entry.variable)
    if entry.method is not None:
        weight = entry.method.weight(weight, entry.state, training=False)
    return ops.convert_to_numpy(ops.cast(weight, "float32"))


def _watched(entry):
    """{name: tensor}: the numbers of a method's state, and what it wants watched."""
    watched = {name: value for name, value in entry.state.items() if len(value.shape) == 0}
    if entry.method is None:
        return watched
    theta = ops.cast(ops.convert_to_tensor(entry.variable), "float32")
    more = entry.method.watch(theta, entry.state)
    return {**watched, **{name: ops.convert_to_tensor(value) for name, value in more.items()}}


def _iou(mask, before):
    union = int(np.count_nonzero(mask | before))
    return int(np.count_nonzero(mask & before)) / union if union else 1.0


def _picture(keep):
    """The mask in two dimensions, float32 in [0, 1]: the fraction kept under each pixel."""
    picture = (keep.reshape(-1, keep.shape[-1]) != 0).astype("float32")
    for axis in (0, 1):
        length = picture.shape[axis]
        starts = np.arange(0, length, -(-length // IMAGE_SIDE))
        widths = np.diff(np.append(starts, length)).reshape((-1, 1) if axis == 0 else (1, -1))
        picture = np.add.reduceat(picture, starts, axis=axis) / widths.astype("float32")
    return picture


def _is_integer(value, least):
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _tensorflow():
    try:
        import tensorflow
        import tensorboard  # noqa: F401  tf.summary needs it
    except ImportError as error:
        raise ImportError("SparsityTensorBoard writes its event files with TensorFlow, on every "
                          "Keras backend. Install it: pip install tensorflow tensorboard"
                          ) from error
    return tensorflow
