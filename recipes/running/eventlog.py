"""TensorBoard logs of a run, with its settings as HParams, where TensorFlow is there to write."""

import importlib

import keras

import tf_sparsity as ts
from recipes.running import configuration as settings
from recipes.running import registry

WRITTEN = "written"
MISSING = "not written: {} is not installed (pip install tensorflow tensorboard)"
OFF = "not written: tensorboard=no"


def status(options):
    """`WRITTEN`, or why there are no logs."""
    if options["tensorboard"] == "no":
        return OFF
    for name in ("tensorflow", "tensorboard"):
        try:
            importlib.import_module(name)
        except ImportError:
            return MISSING.format(name)
    return WRITTEN


def callbacks(run):
    """The callbacks that write a run's logs; none, and a line that says so, where they cannot."""
    said = status(run.options)
    if said != WRITTEN:
        if said != OFF:
            print(f"TensorBoard logs are {said}", flush=True)
        return []
    _leave_the_accelerator_to_the_backend()
    return [EpochLog(run), ts.callbacks.SparsityTensorBoard(str(run.folder / "tensorboard"))]


def finish(run):
    """The final figures, for the table of HParams; of a run that was only ranked, its settings too.
    """
    if status(run.options) != WRITTEN:
        return
    import tensorflow as tf

    _leave_the_accelerator_to_the_backend()
    report = run.record["report"]
    with _writer(run).as_default(step=len(run.record["epochs"])):
        if not run.record["epochs"]:
            _write_settings(run)
        for name in (registry.measure(run.recipe).key, "sparsity"):
            tf.summary.scalar(f"final/{name}", report[name])


class EpochLog(keras.callbacks.Callback):
    """The settings when training begins, and the metrics of each epoch."""

    def __init__(self, run):
        super().__init__()
        self.run = run

    def on_train_begin(self, logs=None):
        self.writer = _writer(self.run)
        with self.writer.as_default(step=0):
            _write_settings(self.run)
        self.writer.flush()

    def on_epoch_end(self, epoch, logs=None):
        import tensorflow as tf

        with self.writer.as_default(step=epoch + 1):
            for name, value in (logs or {}).items():
                tf.summary.scalar(f"epoch/{name}", value)
        self.writer.flush()

    def on_train_end(self, logs=None):
        self.writer.close()


def _write_settings(run):
    from tensorboard.plugins.hparams import api

    values = settings.values(run.configuration)
    api.hparams({key: value for key, value in values.items() if value is not None},
                trial_id=run.digest)


def _writer(run):
    import tensorflow as tf

    return tf.summary.create_file_writer(str(run.folder / "tensorboard"))


def _leave_the_accelerator_to_the_backend():
    """TensorFlow, which only writes files here, would take all the memory of a GPU."""
    if keras.config.backend() != "tensorflow":
        import tensorflow as tf

        tf.config.set_visible_devices([], "GPU")
