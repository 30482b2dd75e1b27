from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from inference_core import ImportLimits, InvalidModelError, OnnxModel, load_onnx_model
from tests.models import onnx_builders


async def load(path: Path, **options: Any) -> OnnxModel:
    return await load_onnx_model(path, path.with_suffix(".normalised"), **options)


async def refusal(path: Path, **options: Any) -> str:
    with pytest.raises(InvalidModelError) as caught:
        await load(path, **options)
    return str(caught.value)


async def test_a_model_tells_its_signature_with_symbols(tmp_path: Path) -> None:
    model = await load(onnx_builders.two_tensors(tmp_path / "model.onnx"))
    described = [(s.name, s.describe()) for s in model.signature.inputs + model.signature.outputs]
    assert described == [
        ("a", "float32 [n, 3]"),
        ("b", "int64 [n, 1]"),
        ("sum", "float32 [n, 3]"),
        ("is_big", "bool [n, 3]"),
    ]
    assert model.signature.has_batch_dimension
    assert model.node_count == 3
    assert model.opset == 17


async def test_equal_models_have_equal_digests_whoever_made_them(tmp_path: Path) -> None:
    path = onnx_builders.mlp(tmp_path / "a.onnx")
    other = onnx.load_model(path)
    other.producer_name = "someone else"
    other.doc_string = "with a comment"
    (tmp_path / "b.onnx").write_bytes(other.SerializeToString())
    assert (await load(path)).digest == (await load(tmp_path / "b.onnx")).digest


@pytest.mark.parametrize("ir_version", [3, 8, onnx.IR_VERSION])
async def test_a_weight_listed_as_an_input_is_no_input(tmp_path: Path, ir_version: int) -> None:
    path = onnx_builders.mlp(tmp_path / "model.onnx")
    proto = onnx.load_model(path)
    proto.ir_version = ir_version
    proto.graph.input.append(onnx_builders.value("first", [16, 32]))
    proto.graph.input.append(onnx_builders.value("second", [32, 4]))
    path.write_bytes(proto.SerializeToString())
    model = await load(path)
    assert [spec.name for spec in model.signature.inputs] == ["x"]


async def test_an_output_without_a_shape_gets_the_inferred_one(tmp_path: Path) -> None:
    path = onnx_builders.mlp(tmp_path / "model.onnx")
    proto = onnx.load_model(path)
    proto.graph.output[0].type.tensor_type.ClearField("shape")
    path.write_bytes(proto.SerializeToString())
    assert (await load(path)).signature.outputs[0].describe() == "float32 [n, 4]"


async def test_external_data_beside_the_model_is_taken_into_it(tmp_path: Path) -> None:
    path = onnx_builders.with_external_data(tmp_path / "model.onnx", "weights/first.bin")
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights/first.bin").write_bytes(np.ones((16, 32), np.float32).tobytes())
    model = await load(path)
    weight = onnx.load_model(model.path, load_external_data=False).graph.initializer[0]
    assert weight.data_location == TensorProto.DEFAULT
    assert (onnx.numpy_helper.to_array(weight) == 1).all()


@pytest.mark.parametrize(
    "location", ["../secret", "/etc/passwd", "a/../../secret", "..\\secret", ""]
)
async def test_external_data_outside_the_folder_is_refused(tmp_path: Path, location: str) -> None:
    message = await refusal(onnx_builders.with_external_data(tmp_path / "m.onnx", location))
    assert "initializer 'first'" in message
    assert "outside the model's folder" in message


async def test_external_data_behind_a_link_is_refused(tmp_path: Path) -> None:
    (tmp_path / "link.bin").symlink_to("/etc/hostname")
    message = await refusal(onnx_builders.with_external_data(tmp_path / "m.onnx", "link.bin"))
    assert "is a link out of the model's folder" in message


async def test_external_data_that_is_too_short_is_refused(tmp_path: Path) -> None:
    path = onnx_builders.with_external_data(tmp_path / "m.onnx", "short.bin")
    (tmp_path / "short.bin").write_bytes(b"abc")
    proto = onnx.load_model(path, load_external_data=False)
    proto.graph.initializer[0].external_data.add(key="length", value="2048")
    path.write_bytes(proto.SerializeToString())
    assert "is truncated: 2048 bytes are needed, it has 3" in await refusal(path)


async def test_a_truncated_onnx_file_is_refused_with_the_byte_offset(tmp_path: Path) -> None:
    path = onnx_builders.mlp(tmp_path / "model.onnx")
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    message = await refusal(path)
    assert "the file is truncated: the field at byte" in message
    assert f"the file at byte {len(whole) // 2}" in message


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "is empty"),
        (b"PK\x03\x04rest", "zip archive"),
        (b"<html>not a model</html>", "byte"),
        (b"\x08\x07", "holds no ONNX graph"),
        (b"\x3a\x03\x0a\xff\xff", "not a valid ONNX model"),
    ],
)
async def test_other_files_are_refused_by_what_they_are(
    tmp_path: Path, content: bytes, expected: str
) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    assert expected in await refusal(path)


async def test_an_unknown_operator_is_refused_by_node_and_name(tmp_path: Path) -> None:
    path = onnx_builders.save(
        tmp_path / "m.onnx",
        [helper.make_node("Frobnicate", ["x"], ["y"], name="third")],
        inputs=[onnx_builders.value("x", [1])],
        outputs=[onnx_builders.value("y", [1])],
    )
    message = await refusal(path)
    assert "node 'third' (op Frobnicate): opset 17 has no such operator" in message


async def test_a_custom_domain_is_refused_by_name(tmp_path: Path) -> None:
    path = onnx_builders.save(
        tmp_path / "m.onnx",
        [helper.make_node("Relu", ["x"], ["y"], name="mine", domain="acme.ops")],
        inputs=[onnx_builders.value("x", [1])],
        outputs=[onnx_builders.value("y", [1])],
    )
    assert "node 'mine' (op Relu) comes from the custom domain 'acme.ops'" in await refusal(path)


async def test_a_cycle_is_refused_with_its_nodes(tmp_path: Path) -> None:
    path = onnx_builders.save(
        tmp_path / "m.onnx",
        [
            helper.make_node("Relu", ["x"], ["a"], name="before"),
            helper.make_node("Add", ["a", "c"], ["b"], name="one"),
            helper.make_node("Relu", ["b"], ["c"], name="two"),
            helper.make_node("Relu", ["c"], ["y"], name="after"),
        ],
        inputs=[onnx_builders.value("x", [1])],
        outputs=[onnx_builders.value("y", [1])],
    )
    message = await refusal(path)
    assert "the graph has a cycle" in message
    assert "node 'one' (op Add)" in message
    assert "node 'two' (op Relu)" in message
    assert "before" not in message


async def test_a_dangling_input_is_refused_by_name(tmp_path: Path) -> None:
    path = onnx_builders.save(
        tmp_path / "m.onnx",
        [helper.make_node("Add", ["x", "ghost"], ["y"], name="sum")],
        inputs=[onnx_builders.value("x", [1])],
        outputs=[onnx_builders.value("y", [1])],
    )
    assert "node 'sum' (op Add) reads 'ghost', which no input" in await refusal(path)


async def test_a_future_opset_is_refused(tmp_path: Path) -> None:
    path = onnx_builders.mlp(tmp_path / "m.onnx")
    proto = onnx.load_model(path)
    proto.opset_import[0].version = 999
    path.write_bytes(proto.SerializeToString())
    assert "the model uses opset 999" in await refusal(path)


async def test_a_file_over_two_gigabytes_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "huge.onnx"
    with path.open("wb") as file:
        file.truncate((2 << 30) + 1)  # sparse: takes no space
    assert f"the file has {(2 << 30) + 1} bytes, the limit is" in await refusal(path)


async def test_an_unsupported_type_is_refused_by_name(tmp_path: Path) -> None:
    path = onnx_builders.save(
        tmp_path / "m.onnx",
        [helper.make_node("Identity", ["x"], ["y"], name="same")],
        inputs=[onnx_builders.value("x", [1], TensorProto.STRING)],
        outputs=[onnx_builders.value("y", [1], TensorProto.STRING)],
    )
    assert "input 'x' has type STRING: use one of float16" in await refusal(path)


async def test_an_import_that_takes_too_long_is_ended(tmp_path: Path) -> None:
    path = onnx_builders.mlp(tmp_path / "m.onnx")
    message = await refusal(path, limits=ImportLimits(wall_s=0.01))
    assert "longer than 0.01 s" in message


async def test_an_import_that_needs_too_much_memory_is_refused(tmp_path: Path) -> None:
    weights = {"w": np.zeros((2048, 2048), np.float32)}
    path = onnx_builders.save(
        tmp_path / "m.onnx",
        [helper.make_node("MatMul", ["x", "w"], ["y"], name="big")],
        inputs=[onnx_builders.value("x", [1, 2048])],
        outputs=[onnx_builders.value("y", [1, 2048])],
        weights=weights,
    )
    message = await refusal(path, limits=ImportLimits(memory_bytes=8 << 20))
    assert f"{8 << 20} bytes of memory" in message


async def test_the_sandbox_words_run_before_the_importer(tmp_path: Path) -> None:
    path = onnx_builders.mlp(tmp_path / "m.onnx")
    model = await load(path, sandbox=["env", "REPRISE_SANDBOXED=1"])
    assert model.node_count == 3
    assert "status 1" in await refusal(path, sandbox=["false"])
