"""OpenTelemetry traces, from the request to each of its candidates; without a collector nothing is imported or done."""

import asyncio
import os
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, Protocol

from starlette.applications import Starlette

from server.account import Account
from server.settings import Settings

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

Attributes = Mapping[str, Any]
UNTRACED = "/health$,/ready$,/metrics$"
"""Addresses that machines ask for every few seconds."""


class Span(Protocol):
    """A piece of work."""

    recording: bool
    """Whether anyone wants to know."""

    def set(self, attributes: Attributes) -> None:
        """Say what came of it; values that are None are left out."""


class Tracing(Protocol):
    """What a server does for traces."""

    def install(self, app: Starlette) -> None:
        """Have a span made for every request."""

    def span(self, name: str, attributes: Attributes | None = None) -> AbstractContextManager[Span]:
        """A span below the current one."""

    def describe_request(self, route: str, account: Account) -> None:
        """Say on the request's span, the current one, what the request was."""

    def trace_id(self) -> str | None:
        """Of the current span, as in W3C's ``traceparent``."""

    def stop(self) -> None:
        """Send what is not sent yet."""


class _NoSpan:
    recording = False

    def set(self, attributes: Attributes) -> None:
        pass


class NoTracing:
    """Traces that nobody wants."""

    _nothing = nullcontext[Span](_NoSpan())

    def install(self, app: Starlette) -> None:
        pass

    def span(self, name: str, attributes: Attributes | None = None) -> AbstractContextManager[Span]:
        return self._nothing

    def describe_request(self, route: str, account: Account) -> None:
        pass

    def trace_id(self) -> str | None:
        return None

    def stop(self) -> None:
        pass


class OpenTelemetry:
    """Traces by OpenTelemetry's SDK; requests by its ASGI instrumentation, which reads ``traceparent``."""

    def __init__(self, provider: "TracerProvider") -> None:
        from opentelemetry import trace

        self._trace, self._provider = trace, provider
        self._tracer = provider.get_tracer("infalign", version("infalign"))

    def install(self, app: Starlette) -> None:
        # The stable names of HTTP's attributes; without this the instrumentation uses those of 2021.
        os.environ.setdefault("OTEL_SEMCONV_STABILITY_OPT_IN", "http")
        from opentelemetry.instrumentation.asgi import OpenTelemetryMiddleware
        from opentelemetry.metrics import NoOpMeterProvider

        app.add_middleware(
            OpenTelemetryMiddleware,
            excluded_urls=UNTRACED,
            default_span_details=lambda scope: (scope["method"], {}),
            tracer_provider=self._provider,
            meter_provider=NoOpMeterProvider(),
            exclude_spans=["receive", "send"],
        )

    @contextmanager
    def span(self, name: str, attributes: Attributes | None = None) -> Iterator[Span]:
        with self._tracer.start_as_current_span(name, attributes=_known(attributes or {})) as found:
            try:
                yield _OpenSpan(found)
            except asyncio.CancelledError:
                found.set_attribute("infalign.aborted", True)
                raise

    def describe_request(self, route: str, account: Account) -> None:
        span = self._trace.get_current_span()
        if not span.is_recording():
            return
        span.update_name(f"{getattr(span, 'name', '')} {route}")
        attributes = {
            "http.route": route,
            "infalign.request_id": account.request_id,
            "infalign.procedure": str(account.procedure) if account.procedure else None,
            "infalign.n": account.n,
            "gen_ai.request.model": account.model,
        }
        span.set_attributes(_known(attributes))

    def trace_id(self) -> str | None:
        context = self._trace.get_current_span().get_span_context()
        return self._trace.format_trace_id(context.trace_id) if context.is_valid else None

    def stop(self) -> None:
        self._provider.shutdown()


class _OpenSpan:
    def __init__(self, span: Any) -> None:
        self._span = span
        self.recording = span.is_recording()

    def set(self, attributes: Attributes) -> None:
        self._span.set_attributes(_known(attributes))


def _known(attributes: Attributes) -> dict[str, Any]:
    return {name: value for name, value in attributes.items() if value is not None}


def tracing_of(settings: Settings) -> Tracing:
    """Traces to the collector of the settings, if they name one."""
    if settings.otlp_endpoint is None:
        return NoTracing()
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    service = {"service.name": os.environ.get("OTEL_SERVICE_NAME", "infalign"), "service.version": version("infalign")}
    provider = TracerProvider(resource=Resource.create(service))
    exporter = OTLPSpanExporter(endpoint=settings.otlp_endpoint.rstrip("/") + "/v1/traces")
    provider.add_span_processor(BatchSpanProcessor(exporter))
    return OpenTelemetry(provider)
