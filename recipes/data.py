"""The data of the recipes, as NumPy arrays.

MNIST comes through tensorflow-datasets, from the folder that `data_dir` or the environment variable
TFDS_DATA_DIR names (its default is ~/tensorflow_datasets). It is downloaded if it is not there.
"""

import numpy as np


def mnist(data_dir=None):
    """`(x, y), (x_test, y_test)`: 60,000 and 10,000 images, float32 of 28 x 28 x 1 in [0, 1]."""
    import tensorflow_datasets as tfds

    def load(download):
        splits = tfds.load("mnist", split=["train", "test"], batch_size=-1, as_supervised=True,
                           data_dir=data_dir, download=download)
        return [(np.asarray(x).astype("float32") / 255, np.asarray(y).astype("int32"))
                for x, y in splits]

    try:
        return load(download=False)
    except Exception:  # noqa: BLE001  the builders raise different errors for what is missing
        return load(download=True)


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


def load(args):
    """`train, test, name` for the arguments of a recipe: MNIST, or the digits with --smoke."""
    if not args.smoke:
        return *mnist(args.data_dir), "MNIST"
    print("Smoke run on scikit-learn's digits in place of MNIST: its numbers mean nothing.")
    return *mnist_shaped_digits(), "digits"
