"""Where a run happens: versions, commit, backend, devices, memory."""

import os
import platform
import shlex
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import keras

import tf_sparsity as ts

PACKAGES = ("keras", "tensorflow", "jax", "numpy", "tensorboard", "keras-tuner")
ENVIRONMENT = ("TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS", "XLA_FLAGS", "JAX_PLATFORMS",
               "CUDA_VISIBLE_DEVICES", "TF_ENABLE_ONEDNN_OPTS", "ONEDNN_MAX_CPU_ISA")


def versions():
    """{package: version}; None for what is not installed."""
    return {"tf_sparsity": ts.__version__, "python": platform.python_version(),
            **{name: _version(name) for name in PACKAGES}}


def _version(name):
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def commit():
    """The commit of the checkout, "-dirty" if files differ from it; None where git has none."""
    try:
        done = subprocess.run(["git", "describe", "--always", "--dirty", "--abbrev=12"],
                              cwd=Path(__file__).parent, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def where():
    """The backend, its devices, the processor's cores, and the environment that changes them."""
    return {"backend": keras.config.backend(), "devices": _devices(),
            "platform": platform.platform(terse=True), "cores": os.cpu_count(),
            "environment": _environment()}


def _environment():
    return {name: os.environ[name] for name in ENVIRONMENT if name in os.environ}


def command(*words):
    """The command line of `python -m` and words, with backend and environment, for a shell."""
    set_to = {"KERAS_BACKEND": keras.config.backend(), **_environment()}
    # The name of a variable must stand outside the quotes
    return " ".join([*(f"{name}={shlex.quote(value)}" for name, value in set_to.items()),
                     shlex.join(["python", "-m", *words])])


def _devices():
    if keras.config.backend() == "jax":
        import jax

        return [f"{device.platform}: {device.device_kind}" for device in jax.local_devices()]
    if keras.config.backend() == "tensorflow":
        import tensorflow as tf

        return [f"{device.device_type.lower()}: " + str(
                    tf.config.experimental.get_device_details(device).get("device_name", "host"))
                for device in tf.config.list_physical_devices()]
    return keras.distribution.list_devices()


def place(where):
    """The backend and, where it is no processor, its kind of device: runs elsewhere are compared
    apart."""
    kinds = sorted({device.partition(":")[0] for device in where.get("devices", ())} - {"cpu"})
    return ", ".join([where["backend"], *kinds])


def forget_peak():
    """Begins the peak of this process anew, where the system can (Linux)."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        pass


def peak_memory():
    """{"process": bytes, "device": bytes or None}: the most that this process has held, since
    `forget_peak` on Linux and since it began elsewhere. A device's is since the process began."""
    return {"process": _process_peak(), "device": _device_peak()}


def _process_peak():
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return 1024 * int(next(line for line in lines if line.startswith("VmHWM:")).split()[1])
    except (OSError, StopIteration):
        import resource  # POSIX only

        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _device_peak():
    if keras.config.backend() == "jax":
        import jax

        peaks = [(device.memory_stats() or {}).get("peak_bytes_in_use")
                 for device in jax.local_devices()]
    elif keras.config.backend() == "tensorflow":
        import tensorflow as tf

        peaks = [tf.config.experimental.get_memory_info(f"GPU:{i}")["peak"]
                 for i in range(len(tf.config.list_physical_devices("GPU")))]
    else:
        peaks = []
    known = [peak for peak in peaks if peak is not None]
    return max(known) if known else None
