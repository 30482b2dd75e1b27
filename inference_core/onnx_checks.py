"""Checks on an untrusted ONNX file; runs in the importer's child process only."""

import mmap
import os
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath

import onnx
from google.protobuf.message import DecodeError
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto

from inference_core.errors import InvalidModelError

_STANDARD_DOMAINS = frozenset({"", "ai.onnx", "ai.onnx.ml"})
# Contributed operators that onnxruntime knows and OpenVINO partly knows; the compiler decides.
_PASSED_DOMAINS = frozenset({"com.microsoft"})
_NESTING_MAX = 32
_GRAPH_FIELD = 7  # of ModelProto


def parse(path: Path, *, max_bytes: int) -> ModelProto:
    size = path.stat().st_size
    if size > max_bytes:
        raise InvalidModelError(
            f"the file has {size} bytes, the limit is {max_bytes}: export a smaller model, or one "
            "with half-precision weights"
        )
    _check_wire_format(path, size)
    try:
        return onnx.load_model(path, load_external_data=False)
    except DecodeError as error:
        raise InvalidModelError(
            f"the file is not a valid ONNX model ({error}): export it again"
        ) from error


def check(model: ModelProto, directory: Path, *, max_bytes: int) -> None:
    """What must hold before external data is read; errors name the node and the fix."""
    _check_opsets(model)
    _check_external_data(model, directory, max_bytes)
    local_functions = {(function.domain, function.name) for function in model.functions}
    for node in _nodes_of(model):
        _check_operator(node, model, local_functions)
    _check_order(model.graph, frozenset(), depth=0)


def check_semantics(model: ModelProto) -> None:
    """The ONNX project's own checker, which reads no file any more."""
    try:
        onnx.checker.check_model(model)
    except onnx.checker.ValidationError as error:
        raise InvalidModelError(f"the ONNX checker refuses the model: {_flat(error)}") from error


def describe(node: NodeProto) -> str:
    return f"node '{node.name or '(no name)'}' (op {node.op_type})"


def _check_wire_format(path: Path, size: int) -> None:
    """Walks the outermost fields: protobuf itself cannot say where a file breaks off."""
    if size == 0:
        raise InvalidModelError("the file is empty: upload it again")
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        if data[:4] == b"PK\x03\x04":
            raise InvalidModelError(
                "the file is a zip archive (a PyTorch checkpoint?), not ONNX: export it with "
                "torch.onnx.export"
            )
        fields = set()
        offset = 0
        while offset < size:
            field, offset = _skip_field(data, offset, size)
            fields.add(field)
    if _GRAPH_FIELD not in fields:
        raise InvalidModelError("the file holds no ONNX graph: is it another kind of file?")


def _skip_field(data: mmap.mmap, start: int, size: int) -> tuple[int, int]:
    tag, offset = _read_varint(data, start, size)
    field, wire_type = tag >> 3, tag & 7
    if field == 0 or wire_type not in (0, 1, 2, 5):
        raise InvalidModelError(f"byte {start} does not begin a protobuf field: not an ONNX file")
    if wire_type == 0:
        _, offset = _read_varint(data, offset, size)
    elif wire_type == 2:
        length, offset = _read_varint(data, offset, size)
        offset += length
    else:
        offset += 8 if wire_type == 1 else 4
    if offset > size:
        raise InvalidModelError(
            f"the file is truncated: the field at byte {start} ends at byte {offset}, the file at "
            f"byte {size}; upload it again"
        )
    return field, offset


def _read_varint(data: mmap.mmap, start: int, size: int) -> tuple[int, int]:
    value = 0
    for index in range(10):
        if start + index >= size:
            raise InvalidModelError(
                f"the file is truncated: it ends inside a number at byte {size}; upload it again"
            )
        byte = data[start + index]
        value |= (byte & 0x7F) << (7 * index)
        if byte < 0x80:
            return value, start + index + 1
    raise InvalidModelError(f"the number at byte {start} is malformed: not an ONNX file")


def _check_opsets(model: ModelProto) -> None:
    newest = onnx.defs.onnx_opset_version()
    versions = {opset.domain or "ai.onnx": opset.version for opset in model.opset_import}
    version = versions.get("ai.onnx", 1)
    if version > newest:
        raise InvalidModelError(
            f"the model uses opset {version}, the newest supported one is {newest}: export with "
            f"opset_version={newest} or lower"
        )


def _nodes_of(model: ModelProto) -> Iterator[NodeProto]:
    yield from _nodes_below(model.graph.node, depth=0)
    for function in model.functions:
        yield from _nodes_below(function.node, depth=0)


def _nodes_below(nodes: Iterable[NodeProto], *, depth: int) -> Iterator[NodeProto]:
    for node in nodes:
        yield node
        for graph in _subgraphs(node, depth):
            yield from _nodes_below(graph.node, depth=depth + 1)


def _subgraphs(node: NodeProto, depth: int) -> Iterator[GraphProto]:
    for attribute in node.attribute:
        if attribute.type == AttributeProto.GRAPH:
            graphs = [attribute.g]
        elif attribute.type == AttributeProto.GRAPHS:
            graphs = list(attribute.graphs)
        else:
            continue
        if depth >= _NESTING_MAX:
            raise InvalidModelError(
                f"{describe(node)}: graphs are nested deeper than {_NESTING_MAX} levels"
            )
        yield from graphs


def _check_operator(
    node: NodeProto, model: ModelProto, local_functions: set[tuple[str, str]]
) -> None:
    domain = "" if node.domain == "ai.onnx" else node.domain
    if domain in _PASSED_DOMAINS or (node.domain, node.op_type) in local_functions:
        return
    if domain not in _STANDARD_DOMAINS:
        raise InvalidModelError(
            f"{describe(node)} comes from the custom domain '{node.domain}': export with standard "
            "operators, or define it as a function inside the model"
        )
    version = next(
        (opset.version for opset in model.opset_import if opset.domain in (node.domain, domain)), 1
    )
    if not onnx.defs.has(node.op_type, domain=domain, max_inclusive_version=version):
        raise InvalidModelError(
            f"{describe(node)}: opset {version} has no such operator; export with a newer opset or "
            "replace the operator"
        )


def _check_external_data(model: ModelProto, directory: Path, max_bytes: int) -> None:
    total = 0
    for tensor in _tensors_of(model):
        if tensor.data_location != TensorProto.EXTERNAL:
            continue
        total += _external_bytes(tensor, directory)
        if total > max_bytes:
            raise InvalidModelError(
                f"the external data has more than {max_bytes} bytes: export a smaller model, or "
                "one with half-precision weights"
            )


def _tensors_of(model: ModelProto) -> Iterator[TensorProto]:
    graphs = [model.graph]
    for node in _nodes_of(model):
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors
        graphs.extend(_subgraphs(node, depth=0))
    for graph in graphs:
        yield from graph.initializer
        for sparse in graph.sparse_initializer:
            yield sparse.values
            yield sparse.indices


def _external_bytes(tensor: TensorProto, directory: Path) -> int:
    fields = {entry.key: entry.value for entry in tensor.external_data}
    location = fields.get("location", "")
    place = PurePosixPath(location)
    where = f"initializer '{tensor.name}': external data at '{location}'"
    if not location or place.is_absolute() or ".." in place.parts or "\\" in location:
        raise InvalidModelError(
            f"{where} lies outside the model's folder: use a plain relative path"
        )
    path = directory / place
    if path.is_symlink() or not path.resolve().is_relative_to(directory.resolve()):
        raise InvalidModelError(f"{where} is a link out of the model's folder: send the file")
    if not path.is_file():
        raise InvalidModelError(f"{where} is missing: send the file with the model")
    size = path.stat().st_size
    offset = _whole_number(fields.get("offset", "0"), where)
    length = _whole_number(fields.get("length", str(max(0, size - offset))), where)
    if offset + length > size:
        raise InvalidModelError(
            f"{where} is truncated: {offset + length} bytes are needed, it has {size}"
        )
    return length


def _whole_number(text: str, where: str) -> int:
    if not text.isdecimal() or len(text) > 18:
        raise InvalidModelError(f"{where} has a malformed offset or length: export it again")
    return int(text)


def _check_order(graph: GraphProto, outer: frozenset[str], *, depth: int) -> None:
    known = set(outer)
    known.update(value.name for value in graph.input)
    known.update(tensor.name for tensor in graph.initializer)
    known.update(sparse.values.name for sparse in graph.sparse_initializer)
    made_here = {name for node in graph.node for name in node.output}
    for node in graph.node:
        missing = [name for name in node.input if name and name not in known]
        if missing and missing[0] in made_here:
            raise InvalidModelError(_order_fault(graph, node, missing[0]))
        if missing:
            raise InvalidModelError(
                f"{describe(node)} reads '{missing[0]}', which no input, initializer or node gives"
            )
        for subgraph in _subgraphs(node, depth):
            _check_order(subgraph, frozenset(known), depth=depth + 1)
        known.update(node.output)


def _order_fault(graph: GraphProto, node: NodeProto, missing: str) -> str:
    makers = {name: maker for maker in graph.node for name in maker.output}
    waiting = _unsortable(graph, makers)
    if not waiting:
        return f"{describe(node)} reads '{missing}' before it is made: sort the nodes topologically"
    # From any node that waits, going back to what it waits for must return to itself.
    trail = [next(iter(waiting.values()))]
    while trail.count(trail[-1]) == 1:
        trail.append(
            next(makers[name] for name in trail[-1].input if _key(makers.get(name)) in waiting)
        )
    loop = trail[trail.index(trail[-1]) :]
    names = " <- ".join(describe(member) for member in loop[:8])
    return f"the graph has a cycle: {names}; use a Loop operator for recurrence"


def _unsortable(graph: GraphProto, makers: dict[str, NodeProto]) -> dict[int, NodeProto]:
    """The nodes that no topological order can hold."""
    waiting = {id(node): node for node in graph.node}
    is_progressing = True
    while waiting and is_progressing:
        ready = [
            key
            for key, node in waiting.items()
            if not any(_key(makers.get(name)) in waiting for name in node.input)
        ]
        for key in ready:
            del waiting[key]
        is_progressing = bool(ready)
    return waiting


def _key(node: NodeProto | None) -> int:
    return id(node) if node is not None else 0


def _flat(error: Exception) -> str:
    return " ".join(str(error).split())[:500]


def load_external_data(model: ModelProto, directory: Path) -> None:
    """Puts checked external data into the model itself."""
    onnx.load_external_data_for_model(model, os.fspath(directory))
