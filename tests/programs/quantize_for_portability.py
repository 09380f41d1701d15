"""Quantizes on each CPU of tests/test_same_bytes.py. Arguments: model, tokenizer, output file.

Prints the SHA-256 of the file, and of a matrix product that is not on a grid, whose last bits are the library's.
"""

import hashlib
import sys
from pathlib import Path

import numpy as np

from quantize import quantize

model, tokenizer, output = map(Path, sys.argv[1:])
quantize(model, output, tokenizer)
inputs = (np.arange(512 * 192) % 1009 / 1009 - 0.5).reshape(512, 192)
for content in (output.read_bytes(), (inputs.T @ inputs).tobytes()):
    print(hashlib.sha256(content).hexdigest())
