"""Writing an ONNX graph down, operation by operation.

The only module that knows ONNX's own objects. Constants are passed where they are used, as numpy
arrays; names are given in the order of writing, so the same graph has the same bytes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from mlops.package.trees import Forest

OPSETS = {"": 18, "ai.onnx.ml": 5}  # 5 is the first whose trees can hold doubles
IR_VERSION = 10
MEAN, SUM = 0, 1  # TreeEnsemble's aggregate_function

Value = tuple[type, *tuple[int, ...]]
"""Type of an input or output, and its columns: none for one number a row."""


class Graph:
    """A graph that grows by `add` and `trees`; each returns the name of its output.

    `at_once`: how many rows are best answered at once, 0 if that makes no difference.
    """

    def __init__(self) -> None:
        self.at_once = 0
        self._nodes: list[onnx.NodeProto] = []
        self._constants: list[onnx.TensorProto] = []

    def add(self, operation: str, *inputs: str | np.ndarray, output: str = "", **how: Any) -> str:
        """Add one operation. `inputs` are names, or arrays that become constants."""
        if "to" in how:
            how["to"] = helper.np_dtype_to_tensor_dtype(np.dtype(how["to"]))
        names = [name if isinstance(name, str) else self._constant(name) for name in inputs]
        output = output or f"{operation}_{len(self._nodes)}"
        self._nodes.append(helper.make_node(operation, names, [output], **how))
        return output

    def _constant(self, array: np.ndarray) -> str:
        name = f"constant_{len(self._constants)}"
        self._constants.append(numpy_helper.from_array(np.asarray(array, order="C"), name))
        return name

    def nearest(self, values: str, count: int) -> tuple[str, str]:
        """Add the `count` least of each row, in rising order: their values and their places."""
        names = [f"TopK_{len(self._nodes)}_{kind}" for kind in ("values", "places")]
        inputs = [values, self._constant(np.array([count]))]
        self._nodes.append(helper.make_node("TopK", inputs, names, largest=0, sorted=1))
        return names[0], names[1]

    def trees(
        self,
        forest: Forest,
        inputs: str,
        leaves: np.ndarray,
        targets: np.ndarray,
        *,
        mean: bool = False,
    ) -> str:
        """Add the trees; `leaves` [leaves] are their answers, each added to its target."""
        on_left, on_right = forest.left < 0, forest.right < 0
        name = f"TreeEnsemble_{len(self._nodes)}"
        node = helper.make_node("TreeEnsemble", [inputs], [name], domain="ai.onnx.ml")
        node.attribute.extend(
            helper.make_attribute(key, value)
            for key, value in (
                ("aggregate_function", MEAN if mean else SUM),
                ("leaf_weights", numpy_helper.from_array(leaves)),
                ("n_targets", int(targets.max()) + 1),
                ("nodes_modes", numpy_helper.from_array(np.zeros(len(forest.left), np.uint8))),
                ("nodes_splits", numpy_helper.from_array(forest.threshold)),
            )
        )
        node.attribute.extend(
            # helper.make_attribute looks at every number twice: seconds for a large forest.
            onnx.AttributeProto(name=key, type=onnx.AttributeProto.INTS, ints=values.tolist())
            for key, values in (
                ("leaf_targetids", targets),
                ("nodes_falseleafs", on_right.astype(np.int64)),
                ("nodes_falsenodeids", np.where(on_right, ~forest.right, forest.right)),
                ("nodes_featureids", forest.feature),
                ("nodes_trueleafs", on_left.astype(np.int64)),
                ("nodes_truenodeids", np.where(on_left, ~forest.left, forest.left)),
                ("tree_roots", forest.roots),
            )
        )
        self._nodes.append(node)
        return name

    def serialize(
        self,
        inputs: Mapping[str, Value],
        outputs: Mapping[str, Value],
        metadata: Mapping[str, str],
    ) -> bytes:
        """Return the model's bytes, checked by ONNX; `metadata` is stored sorted by key."""
        graph = helper.make_graph(
            self._nodes, "pipeline", _describe(inputs), _describe(outputs), self._constants
        )
        model = helper.make_model(
            graph,
            producer_name="mlops",
            ir_version=IR_VERSION,
            opset_imports=[helper.make_opsetid(*item) for item in sorted(OPSETS.items())],
        )
        helper.set_model_props(model, dict(sorted(metadata.items())))
        onnx.checker.check_model(model, full_check=True)
        return bytes(model.SerializeToString(deterministic=True))


def _describe(values: Mapping[str, Value]) -> list[onnx.ValueInfoProto]:
    return [
        helper.make_tensor_value_info(
            name, helper.np_dtype_to_tensor_dtype(np.dtype(kind)), ["N", *columns]
        )
        for name, (kind, *columns) in values.items()
    ]
