"""The data of the recipes as plain arrays: from tensorflow-datasets, or from a prepared .npz.

`python -m recipes.data.arrays mnist FOLDER` writes FOLDER/mnist.npz, which a machine without
TensorFlow reads with `data_dir=FOLDER`. Its keys are x_train, y_train, x_test and y_test, those of
the file that `keras.datasets.mnist.load_data()` downloads.
"""

import argparse
import os
import sys
from pathlib import Path

import numpy as np

from recipes.running import program
from recipes.running.files import read_arrays, replacing

SHAPES = {"mnist": (28, 28, 1), "cifar10": (32, 32, 3), "digits": (28, 28, 1)}
TITLES = {"mnist": "MNIST", "cifar10": "CIFAR-10"}
KEYS = ("x_train", "y_train", "x_test", "y_test")
DIGITS = "Training on scikit-learn's digits: the numbers say nothing about the real data."


def load(name, data_dir=None, shape=None):
    """`(x, y), (x_test, y_test)`: float32 images in [0, 1] and int32 classes.

    Args:
      name: "mnist", "cifar10", or "digits", which stands in for either.
      data_dir: a folder with NAME.npz, that file itself, or a folder of tensorflow-datasets, which
        downloads what it has not; None: its own default.
      shape: (height, width, channels) that digits are brought to; others have their own.

    Raises:
      ValueError: if the data is not there, with the commands that get it; if `data_dir` does not
        exist.
    """
    arrays = _read(name, data_dir)
    if name == "digits":
        print(DIGITS, flush=True)
    x, y, x_test, y_test = (_image(a, name) if a.ndim > 1 else a.astype("int32") for a in arrays)
    if name == "digits" and shape not in (None, SHAPES["digits"]):
        x, x_test = (_reshaped(images, shape) for images in (x, x_test))
    return (x, y), (x_test, y_test)


def asked(args, name="mnist"):
    """`train, test, name` for the arguments of a recipe: the data set, or with --smoke digits of
    its shape."""
    if not args.smoke:
        return *load(name, args.data_dir), TITLES[name]
    print(f"Smoke run on scikit-learn's digits in place of {TITLES[name]}: its numbers mean "
          "nothing.")
    return *load("digits", shape=SHAPES[name]), "digits"


def mnist_shaped_digits():
    """scikit-learn's 1,797 digits of 8 x 8 pixels, each pixel made 3 x 3 and framed to 28 x 28.

    Not MNIST: it stands in for it in smoke runs. Every fifth image is a test image.
    """
    from sklearn.datasets import load_digits

    images, classes = load_digits(return_X_y=True)
    images = np.kron(images.reshape(-1, 8, 8) / 16, np.ones((3, 3)))
    images = np.pad(images, ((0, 0), (2, 2), (2, 2)))[..., None].astype("float32")
    classes = classes.astype("int32")
    test = np.arange(len(images)) % 5 == 0
    return (images[~test], classes[~test]), (images[test], classes[test])


def _read(name, data_dir):
    path = Path(data_dir or ".")
    if data_dir is not None and not path.exists():
        raise ValueError(f"There is no {data_dir}. data_dir is a folder with {name}.npz or of "
                         "tensorflow-datasets; to download into a new one, make it first.")
    path = path if path.is_file() else path / f"{name}.npz"
    if data_dir is not None and path.exists():
        return _prepared(path, name)
    if name == "digits":
        try:
            (x, y), (x_test, y_test) = mnist_shaped_digits()
        except ImportError as error:
            raise ValueError(_missing(name, data_dir, "scikit-learn", error)) from error
        return [x, y, x_test, y_test]
    return _from_tfds(name, data_dir)


def _prepared(path, name):
    """The arrays of an .npz file."""
    make = f"Make it anew: python -m recipes.data.arrays {name} {path.parent}"
    found = read_arrays(path, make)
    missing = [key for key in KEYS if key not in found]
    if missing:
        raise ValueError(f"{path} has no {', '.join(missing)}. It needs {', '.join(KEYS)}. {make}")
    for images, classes in (KEYS[:2], KEYS[2:]):
        if len(found[images]) != len(found[classes]):
            raise ValueError(f"{path} has {len(found[images])} images in {images} and "
                             f"{len(found[classes])} classes in {classes}. {make}")
    return [found[key] for key in KEYS]


def _from_tfds(name, data_dir):
    try:
        import tensorflow_datasets as tfds

        folder = data_dir or os.environ.get("TFDS_DATA_DIR")
        if folder and not Path(folder).exists():
            raise ValueError(f"there is no {folder}, which TFDS_DATA_DIR names")
        try:
            splits = _splits(tfds, name, data_dir, download=False)
        except Exception:  # noqa: BLE001  the builders raise different errors for what is missing
            print(f"{name} is not in {folder or 'the folder of tensorflow-datasets'}: downloading",
                  flush=True)
            splits = _splits(tfds, name, data_dir, download=True)
    except Exception as error:  # not installed, no network, no room: the way out is the same
        raise ValueError(_missing(name, data_dir, "tensorflow-datasets", error)) from error
    return [np.asarray(array) for pair in splits for array in pair]


def _splits(tfds, name, data_dir, download):
    return tfds.load(name, split=["train", "test"], batch_size=-1, as_supervised=True,
                     data_dir=data_dir, download=download)


def _missing(name, data_dir, package, error):
    folder = data_dir or "FOLDER"
    install = {"tensorflow-datasets": "pip install tensorflow tensorflow-datasets "
                                      "importlib_resources"}.get(package, f"pip install {package}")
    fetch = "" if package == "scikit-learn" else (
        f"""  download: python -c "import tensorflow_datasets as tfds; tfds.load('{name}'"""
        + (f", data_dir='{data_dir}'" if data_dir else "") + """)"\n""")
    return (f"The data set {name} cannot be read from {package} ({type(error).__name__}: "
            f"{str(error).splitlines()[0] if str(error) else ''}), and there is no "
            f"{folder}/{name}.npz.\n"
            f"  install:  {install}\n{fetch}"
            f"  without TensorFlow: python -m recipes.data.arrays {name} FOLDER on a machine that "
            "has the data; copy the folder, and give data_dir=FOLDER\n"
            "  to try things out: data=digits (programs: --smoke), on data of scikit-learn's")


def _image(array, name):
    """float32 in [0, 1], with channels."""
    if array.dtype == np.uint8:
        array = array.astype("float32") / 255
    if array.ndim == 3:
        array = array[..., None]
    if array.shape[1:] != SHAPES[name]:
        raise ValueError(f"Images of {name} have the shape {SHAPES[name]}. Received: "
                         f"{array.shape[1:]}")
    return array.astype("float32")


def _reshaped(images, shape):
    """Digits of 28 x 28 in a frame of another size, the same in every channel."""
    height, width, channels = shape
    top, left = (height - 28) // 2, (width - 28) // 2
    images = np.pad(images, ((0, 0), (top, height - 28 - top), (left, width - 28 - left), (0, 0)))
    return np.repeat(images, channels, axis=-1)


def main(argv=None):
    parser = argparse.ArgumentParser(prog="python -m recipes.data.arrays", description=__doc__)
    parser.add_argument("name", choices=list(SHAPES))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--data-dir", default=None, help="where tensorflow-datasets has it")
    args = parser.parse_args(argv)
    with replacing(args.folder / f"{args.name}.npz") as path:
        np.savez_compressed(path, **dict(zip(KEYS, _read(args.name, args.data_dir))))
    print(f"Written: {args.folder / args.name}.npz")
    return 0


if __name__ == "__main__":
    sys.exit(program.status(main))
