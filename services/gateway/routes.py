"""The HTTP routes, read from the google.api.http options of the public services."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from google.api import annotations_pb2, http_pb2
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from reprise.billing.v1 import ledger_pb2, price_pb2
from reprise.gateway.v1 import account_pb2
from reprise.scheduler.v1 import hardware_pb2, prediction_pb2
from reprise.storage.v1 import artifact_pb2, file_pb2, model_pb2
from reprise.wire.v1 import options_pb2

from services.chassis.errors import NotFound, NotImplementedYet, RepriseError

PUBLIC_SERVICES: tuple[ServiceDescriptor, ...] = (
    account_pb2.DESCRIPTOR.services_by_name["AccountService"],
    prediction_pb2.DESCRIPTOR.services_by_name["PredictionService"],
    hardware_pb2.DESCRIPTOR.services_by_name["HardwareService"],
    ledger_pb2.DESCRIPTOR.services_by_name["LedgerService"],
    price_pb2.DESCRIPTOR.services_by_name["PriceService"],
    model_pb2.DESCRIPTOR.services_by_name["ModelService"],
    file_pb2.DESCRIPTOR.services_by_name["FileService"],
    artifact_pb2.DESCRIPTOR.services_by_name["ArtifactService"],
)

# Endpoints of the Replicate API that have no rpc: answered with 501 instead of a puzzling 404.
NOT_SERVED: tuple[tuple[str, str], ...] = (
    ("QUERY", "/v1/models"),
    ("PATCH", "/v1/models/{owner}/{name}"),
    ("DELETE", "/v1/models/{owner}/{name}"),
    ("GET", "/v1/models/{owner}/{name}/readme"),
    ("GET", "/v1/models/{owner}/{name}/examples"),
    ("DELETE", "/v1/models/{owner}/{name}/versions/{version_id}"),
    ("POST", "/v1/models/{owner}/{name}/versions/{version_id}/trainings"),
    ("GET", "/v1/search"),
    ("GET", "/v1/trainings"),
    ("GET", "/v1/trainings/{training_id}"),
    ("POST", "/v1/trainings/{training_id}/cancel"),
    ("GET", "/v1/deployments"),
    ("POST", "/v1/deployments"),
    ("GET", "/v1/deployments/{owner}/{name}"),
    ("PATCH", "/v1/deployments/{owner}/{name}"),
    ("DELETE", "/v1/deployments/{owner}/{name}"),
    ("POST", "/v1/deployments/{owner}/{name}/predictions"),
    ("GET", "/v1/collections"),
    ("GET", "/v1/collections/{slug}"),
    ("GET", "/v1/webhooks/default/secret"),
    ("GET", "/openapi.json"),
)


class MethodNotAllowed(RepriseError):
    """The path exists, but not with this method."""

    default_reason = "METHOD_NOT_ALLOWED"

    def __init__(self, allowed: Iterable[str]) -> None:
        self.allow = ", ".join(sorted(allowed))
        super().__init__(f"This path takes {self.allow} only.")


@dataclass(frozen=True, slots=True, eq=False)
class Route:
    """One HTTP method and path, and the rpc that answers it; none: known but not served."""

    http_method: str
    template: str
    method: MethodDescriptor | None = None
    body: str = ""
    response_body: str = ""
    access: int = options_pb2.ACCESS_TOKEN
    success_status: int = 200


@dataclass(frozen=True, slots=True)
class Match:
    """A route with the values of its path variables."""

    route: Route
    variables: Mapping[str, str]


@dataclass(slots=True)
class _Node:
    """One path segment: what may follow it, and the routes that end here."""

    literals: dict[str, "_Node"] = field(default_factory=dict)
    variable: "_Node | None" = None
    routes: dict[str, tuple[Route, tuple[str, ...]]] = field(default_factory=dict)


class RouteTable:
    """Finds the route of a request: one dict look-up, or a walk along the path's segments."""

    def __init__(self, routes: Iterable[Route]) -> None:
        self.routes = tuple(routes)
        self._exact: dict[tuple[str, str], Match] = {}
        self._root = _Node()
        for route in self.routes:
            self._add(route)

    def match(self, http_method: str, path: str) -> Match:
        """The route; NotFound or MethodNotAllowed where there is none."""
        if exact := self._exact.get((http_method, path)):
            return exact
        segments = path.split("/")[1:]
        allowed: set[str] = set()
        found = _find(self._root, segments, [], http_method, allowed)
        if found is None and allowed:
            raise MethodNotAllowed(allowed)
        if found is None:
            raise NotFound(f"There is nothing at {path[:200]}.", reason="NO_SUCH_PATH")
        return found

    def _add(self, route: Route) -> None:
        node, names = self._root, []
        for segment in route.template.split("/")[1:]:
            if segment.startswith("{"):
                names.append(segment[1:-1])
                node.variable = node.variable or _Node()
                node = node.variable
            else:
                node = node.literals.setdefault(segment, _Node())
        key = route.http_method
        assert key not in node.routes, f"two routes for {key} {route.template}"
        node.routes[key] = (route, tuple(names))
        if not names:
            self._exact[(key, route.template)] = Match(route, {})


def _find(
    node: _Node, segments: list[str], values: list[str], http_method: str, allowed: set[str]
) -> Match | None:
    if not segments:
        if entry := node.routes.get(http_method):
            return Match(entry[0], dict(zip(entry[1], values, strict=True)))
        allowed.update(node.routes)
        return None
    head, rest = segments[0], segments[1:]
    literal = node.literals.get(head)
    found = _find(literal, rest, values, http_method, allowed) if literal else None
    if found is None and node.variable is not None and head:
        found = _find(node.variable, rest, [*values, head], http_method, allowed)
    return found


def build_routes(services: Iterable[ServiceDescriptor] = PUBLIC_SERVICES) -> RouteTable:
    """The route table of the given services, and of what is not served."""
    routes = [
        route
        for service in services
        for method in service.methods
        for route in _routes_of_method(method)
    ]
    routes += [Route(http_method, template) for http_method, template in NOT_SERVED]
    return RouteTable(routes)


def not_served(route: Route) -> NotImplementedYet:
    """What the caller of a known but not served endpoint is told."""
    return NotImplementedYet(
        f"{route.http_method} {route.template} is part of the Replicate API, "
        "but this server does not offer it."
    )


def access_of(method: MethodDescriptor) -> int:
    """Who may call the method through the gateway."""
    return int(method.GetOptions().Extensions[options_pb2.access])


def owner_of(method: MethodDescriptor) -> str:
    """The service that answers the method: reprise.<owner>.v1."""
    return method.full_name.split(".")[1]


def rpc_path(method: MethodDescriptor) -> str:
    """The method as gRPC names it on the wire."""
    return f"/{method.containing_service.full_name}/{method.name}"


def _routes_of_method(method: MethodDescriptor) -> Iterable[Route]:
    options = method.GetOptions()
    if not options.HasExtension(annotations_pb2.http):
        return
    access = access_of(method)
    assert access, f"{method.full_name} has a route but no access option"
    rule = options.Extensions[annotations_pb2.http]
    for binding in (rule, *rule.additional_bindings):
        http_method, template = _pattern(binding)
        yield Route(
            http_method=http_method,
            template=template,
            method=method,
            body=binding.body,
            response_body=binding.response_body,
            access=access,
            success_status=options.Extensions[options_pb2.success_status] or 200,
        )


def _pattern(rule: http_pb2.HttpRule) -> tuple[str, str]:
    kind = rule.WhichOneof("pattern")
    assert kind, "an http option names no path"
    value: Any = getattr(rule, kind)
    return (value.kind, value.path) if kind == "custom" else (kind.upper(), value)
