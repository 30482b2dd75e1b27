"""Typed inputs and outputs of an engine model <-> tensors, as its `reprise.yaml` declares them.

    inputs:
      image:                    # a name of your choice; the order is the order of the form
        type: image             # image | tensor | text | number | integer
        tensor: input           # the tensor it fills (its own name unless given)
        layout: NCHW            # image: NCHW | NHWC
        size: [224, 224]        # image: height, width; the tensor's own where that is fixed
        color: RGB              # image: RGB | BGR | GRAY
        resize: crop            # image: crop | stretch | fit (pads with black)
        mean: [127, 127, 127]   # image: (pixel - mean) / std, in pixel values 0..255;
        std: [128, 128, 128]    #   unless given, floats run from 0 to 1
        description: What to look at
      prompt: {type: text, tensor: ids, encoding: bytes, length: 64, pad: 0}
      strength: {type: number, tensor: alpha, default: 0.5, minimum: 0, maximum: 1}
      top_k: {type: integer, default: 5, minimum: 1, maximum: 20, for: scores}
    outputs:
      scores:
        type: labels            # labels | image | tensor | number
        tensor: output
        labels: labels.txt      # one a line, or a JSON list
        activation: softmax     # labels: none | softmax | sigmoid
        top_k: 5
      picture: {type: image, tensor: rgb, layout: NCHW, color: RGB, format: png}

An input with `for` is a parameter of that output. Without `reprise.yaml` every tensor is a nested
JSON array under its own name.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from inference_core import Signature, TensorSpec
from inference_core.signature import Array
from services.chassis.errors import FieldViolation, InvalidInput
from services.inference.adapter_config import Section, describe_keys, parse_config
from services.inference.adapter_inputs import (
    ImageInput,
    InputField,
    NumberInput,
    TensorInput,
    TextInput,
)
from services.inference.adapter_outputs import (
    ImageOutput,
    LabelsOutput,
    NumberOutput,
    OutputField,
    TensorOutput,
)

_INPUT_TYPES = ("image", "tensor", "text", "number", "integer")
_OUTPUT_TYPES = ("labels", "image", "tensor", "number")


@dataclass(frozen=True, slots=True)
class Adapter:
    """Fields by name, in the order of the form."""

    inputs: Mapping[str, InputField]
    outputs: Mapping[str, OutputField]

    @property
    def image_inputs(self) -> frozenset[str]:
        """Inputs whose values arrive as URLs and must be fetched before `to_tensors`."""
        return frozenset(n for n, field in self.inputs.items() if isinstance(field, ImageInput))

    def to_tensors(self, values: Mapping[str, object]) -> dict[str, Array]:
        """Values of images are their bytes. Raises InvalidInput, naming the field."""
        tensors: dict[str, Array] = {}
        for name, converted in self._convert(values).items():
            tensor = self.inputs[name].tensor
            if tensor is not None and not isinstance(converted, int | float):
                tensors[tensor] = converted
        return tensors

    def from_tensors(
        self, outputs: Mapping[str, Array], values: Mapping[str, object] | None = None
    ) -> Any:
        """One output is the value itself, several are an object. `values` is the run's input."""
        parameters = self._parameters(values or {})
        converted = {
            name: field.convert(name, outputs[field.tensor], parameters)
            for name, field in self.outputs.items()
        }
        return next(iter(converted.values())) if len(converted) == 1 else converted

    def openapi_schema(self) -> dict[str, Any]:
        """The document that a Cog model of the same inputs and outputs would serve."""
        return {
            "openapi": "3.0.2",
            "info": {"title": "Reprise", "version": "0.1.0"},
            "paths": {"/predictions": {"post": _PREDICT_OPERATION}},
            "components": {
                "schemas": {
                    "Input": self._input_schema(),
                    "Output": self._output_schema(),
                    **_PREDICTION_SCHEMAS,
                }
            },
        }

    def _convert(self, values: Mapping[str, object]) -> dict[str, Array | int | float]:
        for name in values:
            if name not in self.inputs:
                raise _invalid(name, f"input '{name}' is unknown; use {describe_keys(self.inputs)}")
        converted = {}
        for name, field in self.inputs.items():
            value = _given(values, name, field)
            if value is None:
                raise _invalid(name, f"input '{name}' is missing")
            converted[name] = field.convert(name, value)
        return converted

    def _parameters(self, values: Mapping[str, object]) -> dict[str, int | float]:
        parameters: dict[str, int | float] = {}
        for name, field in self.inputs.items():
            value = _given(values, name, field) if field.tensor is None else None
            if value is not None:
                converted = field.convert(name, value)
                assert isinstance(converted, int | float)
                parameters[name] = converted
        return parameters

    def _input_schema(self) -> dict[str, Any]:
        properties = {
            name: {"title": _title(name), "x-order": order, **field.schema()}
            for order, (name, field) in enumerate(self.inputs.items())
        }
        schema = {"type": "object", "title": "Input", "properties": properties}
        required = [name for name, value in properties.items() if "default" not in value]
        return schema | ({"required": required} if required else {})

    def _output_schema(self) -> dict[str, Any]:
        schemas = {name: field.schema() for name, field in self.outputs.items()}
        if len(schemas) == 1:
            return {**next(iter(schemas.values())), "title": "Output"}
        return {
            "type": "object",
            "title": "Output",
            "properties": schemas,
            "required": list(schemas),
        }


def load_adapter(
    config_yaml: bytes | None, signature: Signature, files: Mapping[str, bytes]
) -> Adapter:
    """Raises InvalidInput, naming the key of reprise.yaml and the fix."""
    if config_yaml is None:
        return Adapter(
            inputs={s.name: TensorInput(s, s.describe()) for s in signature.inputs},
            outputs={s.name: TensorOutput(s, s.describe()) for s in signature.outputs},
        )
    config = parse_config(config_yaml)
    outputs = _read_outputs(config.section("outputs"), signature, files)
    inputs = _read_inputs(config.section("inputs"), signature, outputs)
    config.finish()
    filled = [field.tensor for field in inputs.values() if field.tensor is not None]
    for spec in signature.inputs:
        if filled.count(spec.name) != 1:
            raise InvalidInput(
                f"reprise.yaml.inputs: tensor '{spec.name}' ({spec.describe()}) must be filled by "
                f"exactly one input, not by {filled.count(spec.name)}"
            )
    return Adapter(inputs=inputs, outputs=outputs)


def _read_outputs(
    section: Section, signature: Signature, files: Mapping[str, bytes]
) -> dict[str, OutputField]:
    fields: dict[str, OutputField] = {}
    for name in section.names():
        entry = section.section(name)
        kind = entry.choice("type", _OUTPUT_TYPES)
        spec = _spec_named(entry, entry.text("tensor", name), signature.outputs)
        if kind == "labels":
            fields[name] = LabelsOutput.read(entry, spec, files)
        elif kind == "image":
            fields[name] = ImageOutput.read(entry, spec)
        elif kind == "number":
            fields[name] = NumberOutput.read(entry, spec)
        else:
            fields[name] = TensorOutput.read(entry, spec)
        entry.finish()
    if not fields:
        raise InvalidInput("reprise.yaml.outputs must declare at least one output")
    return fields


def _read_inputs(
    section: Section, signature: Signature, outputs: Mapping[str, OutputField]
) -> dict[str, InputField]:
    fields: dict[str, InputField] = {}
    for name in section.names():
        entry = section.section(name)
        kind = entry.choice("type", _INPUT_TYPES)
        if entry.has("for"):
            fields[name] = _read_parameter(entry, name, kind, outputs)
        else:
            spec = _spec_named(entry, entry.text("tensor", name), signature.inputs)
            fields[name] = _read_input(entry, kind, spec)
        entry.finish()
    return fields


def _read_input(entry: Section, kind: str, spec: TensorSpec) -> InputField:
    if kind == "image":
        return ImageInput.read(entry, spec)
    if kind == "text":
        return TextInput.read(entry, spec)
    if kind == "tensor":
        return TensorInput.read(entry, spec)
    return NumberInput.read(entry, spec, is_integer=kind == "integer")


def _read_parameter(
    entry: Section, name: str, kind: str, outputs: Mapping[str, OutputField]
) -> NumberInput:
    output = entry.text("for")
    if output not in outputs:
        raise entry.fail("for", f"names '{output}'; the outputs are {describe_keys(outputs)}")
    if name not in outputs[output].parameters or kind not in ("number", "integer"):
        raise entry.fail("for", f"'{output}' takes no {kind} parameter '{name}'")
    return NumberInput.read(entry, None, is_integer=kind == "integer")


def _spec_named(entry: Section, name: str, specs: Iterable[TensorSpec]) -> TensorSpec:
    by_name = {spec.name: spec for spec in specs}
    if name not in by_name:
        raise entry.fail("tensor", f"names '{name}'; the model has {describe_keys(by_name)}")
    return by_name[name]


def _given(values: Mapping[str, object], name: str, field: InputField) -> object:
    """The field's value or its default; None where there is neither."""
    value = values.get(name)
    return field.schema().get("default") if value is None else value


def _invalid(field: str, message: str) -> InvalidInput:
    return InvalidInput(message, fields=[FieldViolation(field, message)])


def _title(name: str) -> str:
    return name.replace("_", " ").strip().capitalize()


_PREDICTION_SCHEMAS: dict[str, Any] = {
    "PredictionRequest": {
        "type": "object",
        "title": "PredictionRequest",
        "properties": {"input": {"$ref": "#/components/schemas/Input"}},
        "required": ["input"],
    },
    "PredictionResponse": {
        "type": "object",
        "title": "PredictionResponse",
        "properties": {
            "output": {"$ref": "#/components/schemas/Output"},
            "status": {"$ref": "#/components/schemas/Status"},
            "error": {"type": "string"},
        },
    },
    "Status": {
        "type": "string",
        "title": "Status",
        "description": "An enumeration.",
        "enum": ["starting", "processing", "succeeded", "canceled", "failed"],
    },
}

_PREDICT_OPERATION: dict[str, Any] = {
    "summary": "Predict",
    "operationId": "predict",
    "requestBody": {
        "content": {
            "application/json": {"schema": {"$ref": "#/components/schemas/PredictionRequest"}}
        }
    },
    "responses": {
        "200": {
            "description": "The finished prediction",
            "content": {
                "application/json": {"schema": {"$ref": "#/components/schemas/PredictionResponse"}}
            },
        }
    },
}
