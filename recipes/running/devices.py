"""Several devices that share each batch."""

import contextlib

import keras


def sharing(count):
    """A context: models made, trained and evaluated in it share their batches among devices.

    On JAX it is `keras.distribution.DataParallel`, under which all is as on one device, up to the
    order of sums. On TensorFlow it is `tf.distribute.MirroredStrategy`, under which batch
    normalization must be told so (`synchronized`), and all devices draw the same noise.

    Args:
      count: of devices, at least 1: accelerators, or processors where there are none.

    Raises:
      ValueError: if there are fewer devices, or the backend is another one.
    """
    if count == 1:
        return contextlib.nullcontext()
    if keras.config.backend() == "jax":
        return _data_parallel(count)
    if keras.config.backend() == "tensorflow":
        return _mirrored(count)
    raise ValueError(f"devices={count}: several devices need Keras' JAX or TensorFlow backend. "
                     f"Received: {keras.config.backend()}. Set KERAS_BACKEND, or devices=1.")


def synchronized(count):
    """Whether `BatchNormalization` needs `synchronized=True` to see all of a shared batch.

    Without it each device keeps averages of its own, and only those of the first are saved.
    """
    return count > 1 and keras.config.backend() == "tensorflow"


def _data_parallel(count):
    devices = keras.distribution.list_devices()
    _check(count, devices)
    return keras.distribution.DataParallel(devices=devices[:count]).scope()


def _mirrored(count):
    import tensorflow as tf

    if tf.distribute.has_strategy():  # a run that another one needs is made inside that one
        return contextlib.nullcontext()
    devices = tf.config.list_logical_devices("GPU") or tf.config.list_logical_devices("CPU")
    _check(count, devices)
    return tf.distribute.MirroredStrategy([device.name for device in devices[:count]]).scope()


def _check(count, devices):
    if count > len(devices):
        raise ValueError(f"devices={count}: there are {len(devices)}. Give devices="
                         f"{len(devices)} or fewer; CUDA_VISIBLE_DEVICES may hide some.")
