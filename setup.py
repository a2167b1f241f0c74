"""The only build file: pip install .  (extras: demo, test, jax, tflite, recipes)"""

from setuptools import find_packages, setup

DEMO = ["scikit-learn>=1.3", "matplotlib>=3.8"]
JAX = ["jax>=0.4.30"]
TFLITE = ["ai-edge-quantizer>=0.10"]  # quantizes .tflite files; Keras models need TensorFlow only
# recipes/sos_transformer_*: subwords and BLEU
RECIPES = ["sentencepiece>=0.2", "sacrebleu>=2.4", "sacremoses>=0.1"]

setup(
    name="tf_sparsity",
    version="0.1.0",
    description="Keras 3 models made sparse while they train, and small TFLite files of them",
    python_requires=">=3.11",  # as Keras 3.15
    # recipes/ is run from a checkout; its name is too common to install.
    packages=find_packages(
        include=["tf_sparsity", "tf_sparsity.*", "tflite_export", "tflite_export.*"]
    ),
    install_requires=[
        "keras>=3.15",  # docs/design.md lists the internals relied on; older ones have others
        "numpy>=1.26",
        "tensorflow>=2.21",
        "tensorflow-model-optimization>=0.8",
        "tensorflow-datasets>=4.9.4",
        "importlib_resources",  # tensorflow-datasets 4.9.10 imports it to download, and lacks it
        "keras-tuner>=1.4.7",
        "tensorboard>=2.20",
        "ai-edge-litert>=2.3",  # the LiteRT interpreter; TensorFlow's own is deprecated
        "flatbuffers>=25.9",  # writes .tflite files
    ],
    extras_require={
        "demo": DEMO,
        "jax": JAX,
        "tflite": TFLITE,
        "recipes": RECIPES,
        # setuptools and wheel: test_wheel.py builds without a network
        "test": [
            *DEMO,
            *JAX,
            *TFLITE,
            *RECIPES,
            "hypothesis>=6.100",
            "pytest>=8",
            "pytest-xdist>=3.5",
            "setuptools>=65",
            "wheel",
            "tf_keras",
        ],
    },
)
