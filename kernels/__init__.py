"""onnxruntime operators of our own, in C: what lies between the INT8 products of an encoder.

`python -m kernels` compiles them. Nothing is imported here that a cold start has not loaded.
"""

import os
import sys

VERSION = 1
"""Of the operators that the library has. It grows whenever they give other bits or read other inputs, and a model
file says which it needs."""


def library(system: str, machine: str) -> str:
    """Path of the library for a system such as "linux" and a processor such as "x86_64", whether it is there or not."""
    return os.path.join(os.path.dirname(os.path.abspath(__file__)), f"operators-{system}-{machine}.so")


LIBRARY = library(sys.platform, os.uname().machine)
"""For `onnxruntime.SessionOptions.register_custom_ops_library`."""
