"""Programs that train, prune and export on real data: python -m recipes.<name>, from a checkout."""

import os
import sys

# oneDNN's kernels for AVX-512 in TensorFlow 2.21 corrupt memory in convolutions of few channels, in
# plain Keras too. Those for AVX2 do not, and are faster than none. The variable is read when
# TensorFlow is imported; an empty one leaves the choice to oneDNN.
if (os.environ.get("KERAS_BACKEND", "tensorflow") == "tensorflow" and "tensorflow" not in sys.modules
        and not os.environ.setdefault("ONEDNN_MAX_CPU_ISA", "AVX2")):
    del os.environ["ONEDNN_MAX_CPU_ISA"]
