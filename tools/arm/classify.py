"""classify.py MODEL.tflite IMAGES.npy LOGITS.npy: each image through a file of batch size 1."""

import sys
import warnings

import numpy as np

warnings.simplefilter("ignore")  # LiteRT calls its own Interpreter deprecated
from ai_edge_litert.interpreter import Interpreter  # noqa: E402


def main():
    model, images, logits = sys.argv[1:]
    interpreter = Interpreter(model)
    interpreter.allocate_tensors()
    (taken,), (given,) = interpreter.get_input_details(), interpreter.get_output_details()
    found = []
    for image in np.load(images):
        interpreter.set_tensor(taken["index"], image[None])
        interpreter.invoke()
        found.append(interpreter.get_tensor(given["index"])[0])
    np.save(logits, np.stack(found))


main()
