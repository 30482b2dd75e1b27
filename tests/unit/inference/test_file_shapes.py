"""Where files may stand in inputs and outputs."""

from typing import Any

from services.inference.file_shapes import FileShape, read_shapes

FILE = {"type": "string", "format": "uri"}


def shapes(inputs: dict[str, Any], output: dict[str, Any], **others: Any) -> Any:
    schemas = {"Input": {"properties": inputs}, "Output": output, **others}
    return read_shapes({"components": {"schemas": schemas}})


def test_only_uri_properties_and_arrays_of_them_are_files() -> None:
    found = shapes(
        {"text": {"type": "string"}, "image": FILE, "images": {"type": "array", "items": FILE}},
        {"type": "string"},
    )
    assert found.input == {
        "image": FileShape(is_file=True),
        "images": FileShape(items=FileShape(is_file=True)),
    }
    assert found.output is None


def test_files_are_found_inside_of_objects_arrays_and_references() -> None:
    output = {
        "type": "object",
        "properties": {"pages": {"type": "array", "items": {"$ref": "#/components/schemas/Page"}}},
        "additionalProperties": FILE,
    }
    page = {"type": "object", "properties": {"scan": FILE, "text": {"type": "string"}}}
    found = shapes({}, output, Page=page)
    scan = FileShape(properties={"scan": FileShape(is_file=True)})
    assert found.output == FileShape(
        properties={"pages": FileShape(items=scan)}, others=FileShape(is_file=True)
    )


def test_the_items_of_an_iterator_have_the_shape_of_its_elements() -> None:
    found = shapes({}, {"type": "array", "items": FILE, "x-cog-array-type": "iterator"})
    assert found.item == FileShape(is_file=True)


def test_schemas_that_refer_to_themselves_end() -> None:
    node = {"type": "object", "properties": {"next": {"$ref": "#/components/schemas/Node"}}}
    assert shapes({}, {"$ref": "#/components/schemas/Node"}, Node=node).output is None
    loop = {"$ref": "#/components/schemas/Output"}
    assert shapes({}, loop).output is None


def test_a_document_without_schemas_has_no_files() -> None:
    assert read_shapes({}).input == {}
