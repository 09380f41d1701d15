"""onnxruntime operators of our own, in C: the INT8 products of an encoder, and the steps between them.

`python -m kernels` compiles them. Nothing is imported here that a cold start has not loaded.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnxruntime

VERSION = 4
"""Version of the operators, raised by every change of their results or inputs. A model file says which it needs."""


class OperatorsError(Exception):
    """The operators cannot be loaded; the message names the library and the remedy."""


def library(system: str, machine: str) -> str:
    """Path of the library for a system such as "linux" and a processor such as "x86_64", whether it is there or not."""
    return os.path.join(os.path.dirname(os.path.abspath(__file__)), f"operators-{system}-{machine}.so")


LIBRARY = library(sys.platform, os.uname().machine)
"""For `onnxruntime.SessionOptions.register_custom_ops_library`."""


def register(options: onnxruntime.SessionOptions) -> None:
    """Let sessions with these options run the operators.

    They use the CPU's best instruction set of "vnni", "avx512" and "avx2", or "neon", or the one that the environment
    variable KERNELS_INSTRUCTIONS names; the options' entry "kernels.instructions" says which.
    Raises OperatorsError if the library is missing or cannot be loaded, as on a CPU without AVX2.
    """
    if not os.path.exists(LIBRARY):
        raise OperatorsError(f"{LIBRARY}, which the INT8 model needs, is missing: compile it with: make operators")
    try:
        options.register_custom_ops_library(LIBRARY)
    except Exception as error:  # onnxruntime raises nothing more exact
        raise OperatorsError(f"cannot load {LIBRARY}: {error}") from error
