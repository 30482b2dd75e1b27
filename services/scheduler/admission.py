"""What a create must satisfy before it costs anything, and the record that it becomes."""

from dataclasses import dataclass
from urllib.parse import urlsplit

from reprise.scheduler.v1 import prediction_pb2

from services.chassis import telemetry
from services.chassis.clock import now_us
from services.chassis.errors import invalid_field
from services.scheduler.record import PredictionRecord, prediction_id_of
from services.scheduler.settings import SchedulerSettings
from services.scheduler.versions import REFERENCE_LENGTH_MAX, KnownVersion

CANCEL_AFTER_MIN_S = 5
CANCEL_AFTER_MAX_S = 24 * 3600
WEBHOOK_LENGTH_MAX = 2048
WEBHOOK_EVENTS = ("start", "output", "logs", "completed")


@dataclass(frozen=True, slots=True)
class Application:
    """A create whose shape was checked; its version and input are not yet known to be good."""

    prediction_id: str
    account_id: str
    reference: str
    input: str
    webhook: str | None
    webhook_events_filter: str
    cancel_after_s: float | None
    wait_s: float


def read_request(
    request: prediction_pb2.CreatePredictionRequest,
    *,
    account_id: str,
    request_id: str,
    settings: SchedulerSettings,
) -> Application:
    """Checks everything that needs no other service; raises InvalidInput that names the field."""
    input_text = request.input.text
    if len(input_text) > settings.input_size_max:
        raise invalid_field("input", f"must be at most {settings.input_size_max} bytes", "size")
    return Application(
        prediction_id=prediction_id_of(account_id, request_id),
        account_id=account_id,
        reference=_reference(request),
        input=input_text or "{}",
        webhook=_webhook(request.webhook or request.webhook_completed),
        webhook_events_filter=_events_filter(request),
        cancel_after_s=_cancel_after(request),
        wait_s=_wait(request, settings.wait_max_s),
    )


def to_record(
    application: Application, version: KnownVersion, settings: SchedulerSettings
) -> PredictionRecord:
    """The row of an accepted create; raises InvalidInput when the input does not fit."""
    input_text = version.input_schema.check(application.input)
    created_at = now_us()
    after_s = application.cancel_after_s
    return PredictionRecord(
        id=application.prediction_id,
        account_id=application.account_id,
        model=version.model,
        version_id=version.version_id,
        hardware=version.hardware,
        is_iterator=version.is_iterator,
        has_file_output=version.has_file_output,
        input=input_text,
        created_at=created_at,
        deadline_at=None if after_s is None else created_at + int(after_s * 1e6),
        source="api",
        webhook=application.webhook,
        webhook_events_filter=application.webhook_events_filter,
        traceparent=telemetry.current_traceparent(),
        run_timeout_ms=int(settings.run_timeout_s * 1000),
        price_micros_per_second=0,
        held_amount_micros=0,
    )


def _reference(request: prediction_pb2.CreatePredictionRequest) -> str:
    if request.model_owner or request.model_name:
        if request.version:
            raise invalid_field(
                "version", "must not be given: the path names the model already", "not_allowed"
            )
        return f"{request.model_owner}/{request.model_name}"
    if not request.version:
        raise invalid_field("version", "is required", "required")
    if len(request.version) > REFERENCE_LENGTH_MAX:
        raise invalid_field("version", f"must be at most {REFERENCE_LENGTH_MAX} long", "string_lte")
    return request.version


def _webhook(url: str) -> str | None:
    if not url:
        return None
    try:
        parts = urlsplit(url)
        is_good = parts.scheme in ("http", "https") and bool(parts.hostname)
    except ValueError:
        is_good = False
    if not is_good or len(url) > WEBHOOK_LENGTH_MAX:
        raise invalid_field("webhook", "must be an http or https URL", "url")
    return url


def _events_filter(request: prediction_pb2.CreatePredictionRequest) -> str:
    chosen = set(request.webhook_events_filter)
    if not chosen.issubset(WEBHOOK_EVENTS):
        allowed = ", ".join(WEBHOOK_EVENTS)
        raise invalid_field("webhook_events_filter", f"may only hold {allowed}", "enum")
    return ",".join(name for name in WEBHOOK_EVENTS if name in chosen)


def _cancel_after(request: prediction_pb2.CreatePredictionRequest) -> float | None:
    if not request.HasField("cancel_after"):
        return None
    after_s = request.cancel_after.seconds + request.cancel_after.nanos / 1e9
    if not CANCEL_AFTER_MIN_S <= after_s <= CANCEL_AFTER_MAX_S:
        raise invalid_field("cancel_after", "must be between 5 seconds and 24 hours", "duration")
    return after_s


def _wait(request: prediction_pb2.CreatePredictionRequest, maximum_s: float) -> float:
    if not request.HasField("wait"):
        return 0.0
    return min(max(request.wait.seconds + request.wait.nanos / 1e9, 0.0), maximum_s)
