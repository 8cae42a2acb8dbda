"""Depthwise convolutions over z, put together again for OpenVINO.

A bundle's graphs have each as three 2-D ones, of the sections before, at and after, whose inputs are shifted by a
section (`export/block_graph.py`): that suits backends that are slow at five axes. OpenVINO computes the 3-D one in the
time of the three, and what is channels-last in memory changes its number of axes without being copied. So shifts and
sums are saved, and the sum of the three is rounded once.
"""

from __future__ import annotations

from typing import Any

# What becomes of the four axes (z, channels, y, x) on the way to the five (1, channels, z, y, x), and back.
_TO_LAST, _TO_FIRST = (0, 2, 3, 1), (0, 3, 1, 2)
_VOLUME_TO_LAST, _VOLUME_TO_FIRST = (0, 2, 3, 4, 1), (0, 4, 1, 2, 3)


def join_depthwise(model: Any) -> int:
    """Replace every sum of three shifted depthwise convolutions, in place.

    Args:
        model: of OpenVINO, of static shapes.

    Returns:
        How many were found. Sums of another form stay as they are.
    """
    joined = 0
    for node in model.get_ordered_ops():
        if node.get_type_name() == "Add" and (found := _planes(node)) is not None:
            _join(node, *found)
            joined += 1
    if joined:
        model.validate_nodes_and_infer_types()
    return joined


def _planes(node: Any) -> tuple[list[Any], list[Any]] | None:
    """The convolutions of the section before, at and after, and what else is added; None if a sum is not of these."""
    convolutions: dict[int, Any] = {}
    others = []
    for term in _terms(node):
        if term.get_type_name() != "GroupConvolution":
            others.append(term)
            continue
        shift = _shift(term.input_value(0).get_node())
        if shift in convolutions:
            return None
        convolutions[shift] = term
    if set(convolutions) != {-1, 0, 1} or not all(_is_bias(other) for other in others):
        return None
    planes = [convolutions[shift] for shift in (-1, 0, 1)]
    middle = planes[1]
    same = all(
        plane.get_attributes() == middle.get_attributes()
        and plane.input_value(1).get_shape() == middle.input_value(1).get_shape()
        and _source(plane) == _source(middle)
        for plane in planes
    )
    return (planes, others) if same and middle.get_attributes()["auto_pad"] == "explicit" else None


def _terms(node: Any) -> list[Any]:
    """What a tree of sums adds up; a sum that others read as well is a term of its own."""
    terms = []
    for value in node.input_values():
        term = value.get_node()
        if term.get_type_name() == "Add" and len(value.get_target_inputs()) == 1:
            terms += _terms(term)
        else:
            terms.append(term)
    return terms


def _is_bias(node: Any) -> bool:
    """Whether a term is one number for each channel."""
    shape = node.output(0).get_shape()
    return len(shape) == 4 and shape[0] == shape[2] == shape[3] == 1


def _source(convolution: Any) -> tuple[str, int]:
    """Name and output of what a convolution reads, before it is shifted."""
    value = convolution.input_value(0)
    if _shift(value.get_node()) != 0:
        value = value.get_node().input_value(0).get_node().input_value(0)
    return value.get_node().get_name(), value.get_index()


def _shift(node: Any) -> int:
    """The section of its input that a node has at section 0: -1 or 1, outside of which it has 0; or 0."""
    if node.get_type_name() != "Pad" or node.get_attributes()["pad_mode"] != "constant":
        return 0
    cut = node.input_value(0).get_node()
    if cut.get_type_name() != "Slice":
        return 0
    sections = cut.input_value(0).get_shape()[0]
    start, stop, step, axes = (_numbers(cut.input_value(i).get_node()) for i in range(1, 5))
    before, after, filling = (_numbers(node.input_value(i).get_node()) for i in range(1, 4))
    if start is None or stop is None or (step, axes, filling) != ([1], [0], [0]):
        return 0
    kept = range(*slice(int(start[0]), int(stop[0])).indices(sections))
    if kept == range(sections - 1) and (before, after) == ([1, 0, 0, 0], [0, 0, 0, 0]):
        return -1
    if kept == range(1, sections) and (before, after) == ([0, 0, 0, 0], [1, 0, 0, 0]):
        return 1
    return 0


def _numbers(node: Any) -> list[float] | None:
    return node.data.ravel().tolist() if node.get_type_name() == "Constant" else None


def _join(node: Any, planes: list[Any], others: list[Any]) -> None:
    from openvino import opset13 as ops

    middle = planes[1]
    kernel = ops.concat([ops.unsqueeze(plane.input_value(1), 3) for plane in planes], 3)
    attributes = middle.get_attributes()
    stack = middle.input_value(0)
    last = ops.unsqueeze(ops.transpose(stack, list(_TO_LAST)), 0)
    volume = ops.group_convolution(
        ops.transpose(last, list(_VOLUME_TO_FIRST)),
        kernel,
        strides=[1, *attributes["strides"]],
        pads_begin=[1, *attributes["pads_begin"]],
        pads_end=[1, *attributes["pads_end"]],
        dilations=[1, *attributes["dilations"]],
    )
    for other in others:
        volume = ops.add(volume, ops.unsqueeze(other.output(0), 2))
    readers = list(node.output(0).get_target_inputs())
    # Computed by the convolution itself while it has five axes.
    if len(readers) == 1 and readers[0].get_node().get_type_name() == "Relu":
        volume, node = ops.relu(volume), readers[0].get_node()
    back = ops.transpose(ops.squeeze(ops.transpose(volume, list(_VOLUME_TO_LAST)), 0), list(_TO_FIRST))
    back.set_friendly_name(node.get_friendly_name())
    node.output(0).replace(back.output(0))
