"""Collects nodes and constants of an ONNX graph under one prefix."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
from onnx import NodeProto, TensorProto, helper, numpy_helper


class Writer:
    """`node` and `constant` return the full name of what they add."""

    def __init__(self, prefix: str) -> None:
        self.nodes: list[NodeProto] = []
        self.constants: list[TensorProto] = []
        self._prefix = prefix

    def constant(self, name: str, value: npt.ArrayLike) -> str:
        full = f"{self._prefix}/{name}"
        self.constants.append(numpy_helper.from_array(np.asarray(value, order="C"), full))
        return full

    def node(
        self,
        kind: str,
        inputs: Sequence[str],
        output: str,
        whole_name: bool = False,
        domain: str | None = None,
        **attributes: float | Sequence[int],
    ) -> str:
        """`whole_name`: `output` is the full name already."""
        full = output if whole_name else f"{self._prefix}/{output}"
        self._add(helper.make_node(kind, list(inputs), [full], domain=domain), attributes)
        return full

    def node_of_outputs(
        self, kind: str, inputs: Sequence[str], outputs: Sequence[str], domain: str, **attributes: float
    ) -> None:
        """`outputs` are full names."""
        self._add(helper.make_node(kind, list(inputs), list(outputs), domain=domain), attributes)

    def _add(self, node: NodeProto, attributes: Mapping[str, float | Sequence[int]]) -> None:
        node.attribute.extend(helper.make_attribute(name, value) for name, value in attributes.items())
        self.nodes.append(node)
