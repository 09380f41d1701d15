"""How near vectors are."""

import numpy as np

INT8_LOWEST_COSINE = 0.9950
"""Of any text at all."""


def cosines(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Of the rows of one with those of the other, both of shape (n, size)."""
    return np.einsum("ij,ij->i", left, right) / (np.linalg.norm(left, axis=1) * np.linalg.norm(right, axis=1))
