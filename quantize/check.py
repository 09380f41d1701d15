"""How near a quantized file is to the float32 file, on texts that it was not calibrated with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from quantize.calibration import feed, open_session, run

Array64 = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Report:
    """What quantizing cost."""

    errors: Mapping[str, float]
    """Of each linear on calibration text: root of the squared output error over the output's variance. Empty for
    dynamic recipes."""
    texts: int = 0
    """Texts held out of the calibration; 0 where there was none, and then there are no cosines."""
    mean_cosine: float = 1.0
    """Of the mean-pooled last hidden states, to those of the float32 file."""
    min_cosine: float = 1.0

    def __str__(self) -> str:
        """The cosines, and the three linears with the largest errors."""
        parts = []
        if self.texts:
            figures = f"mean {self.mean_cosine:.5f}, minimum {self.min_cosine:.5f}"
            parts.append(f"cosine to float32 on {self.texts} texts held out: {figures}")
        if self.errors:
            worst = sorted(self.errors, key=lambda name: -self.errors[name])[:3]
            parts.append(
                f"largest relative errors: {', '.join(f'{self.errors[name]:.4f} in {name}' for name in worst)}"
            )
        return "; ".join(parts)


def report(source: Path, target: Path, errors: Mapping[str, float], ids: Sequence[Sequence[int]]) -> Report:
    """Compare the two files on texts of token ids, each by itself."""
    pooled = [_pooled(path, ids) for path in (source, target)]
    lengths = [np.linalg.norm(vectors, axis=1) for vectors in pooled]
    cosines = (pooled[0] * pooled[1]).sum(axis=1) / (lengths[0] * lengths[1])
    return Report(errors, len(ids), float(cosines.mean()), float(cosines.min()))


def _pooled(path: Path, ids: Sequence[Sequence[int]]) -> Array64:
    session = open_session(path)
    name = session.get_outputs()[0].name
    return np.array([run(session, [name], feed([text]))[0][0].mean(axis=0, dtype=np.float64) for text in ids])
