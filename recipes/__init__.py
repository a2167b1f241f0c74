"""Programs that train, prune and export on real data: python -m recipes.<name>, from a checkout."""

import os
import sys

# oneDNN's kernels for AVX-512 in TensorFlow 2.21 corrupt memory in convolutions of few channels, in
# plain Keras too. Those for AVX2 do so with 2 channels, but have not with 8, and are faster than
# none. Read when TensorFlow is imported; an empty variable leaves the choice to oneDNN.
if (os.environ.get("KERAS_BACKEND", "tensorflow") == "tensorflow" and "tensorflow" not in sys.modules
        and not os.environ.setdefault("ONEDNN_MAX_CPU_ISA", "AVX2")):
    del os.environ["ONEDNN_MAX_CPU_ISA"]
