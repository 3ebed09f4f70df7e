"""OpenTelemetry traces, from the request down to its candidates. Without a collector nothing is imported or traced."""

import asyncio
import os
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, Protocol

from starlette.applications import Starlette

from server.observability.account import Account
from server.settings import Settings

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

Attributes = Mapping[str, Any]
UNTRACED = "/health$,/ready$,/metrics$"
"""Paths without traces, because machines request them every few seconds."""


class Span(Protocol):
    """A traced piece of work."""

    is_recording: bool
    """Whether the span's attributes are recorded."""

    def set(self, attributes: Attributes) -> None:
        """Set attributes of the span. Values that are None are left out."""


class Tracing(Protocol):
    """What the server needs to write traces."""

    def install(self, app: Starlette) -> None:
        """Add a span for every request of ``app``."""

    def span(self, name: str, attributes: Attributes | None = None) -> AbstractContextManager[Span]:
        """Open a span below the current one.

        Args:
            name: Name of the span.
            attributes: Its first attributes.
        """

    def describe_request(self, route: str, account: Account) -> None:
        """Add what the request asks for to the current span, which is the request's.

        Args:
            route: The path of the matched route.
            account: The request's account.
        """

    def trace_id(self) -> str | None:
        """Return the id of the current trace in the form of W3C's ``traceparent``, if there is a trace."""

    def stop(self) -> None:
        """Send the spans that have not been sent yet."""


class _NoSpan:
    is_recording = False

    def set(self, attributes: Attributes) -> None:
        pass


class NoTracing:
    """Writes no traces."""

    _no_span = nullcontext[Span](_NoSpan())

    def install(self, app: Starlette) -> None:
        pass

    def span(self, name: str, attributes: Attributes | None = None) -> AbstractContextManager[Span]:
        return self._no_span

    def describe_request(self, route: str, account: Account) -> None:
        pass

    def trace_id(self) -> str | None:
        return None

    def stop(self) -> None:
        pass


class OpenTelemetry:
    """Writes traces with OpenTelemetry's SDK.

    Requests are traced by its ASGI instrumentation, which continues the trace of a ``traceparent`` header.

    Args:
        provider: The SDK's tracer provider.
    """

    def __init__(self, provider: "TracerProvider") -> None:
        from opentelemetry import trace

        self._trace, self._provider = trace, provider
        self._tracer = provider.get_tracer("infalign", version("infalign"))

    def install(self, app: Starlette) -> None:
        # Selects the stable names of HTTP attributes. By default the instrumentation uses those of 2021.
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
        with self._tracer.start_as_current_span(name, attributes=_drop_none(attributes or {})) as otel_span:
            try:
                yield _OpenSpan(otel_span)
            except asyncio.CancelledError:
                otel_span.set_attribute("infalign.aborted", True)
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
        span.set_attributes(_drop_none(attributes))

    def trace_id(self) -> str | None:
        context = self._trace.get_current_span().get_span_context()
        return self._trace.format_trace_id(context.trace_id) if context.is_valid else None

    def stop(self) -> None:
        self._provider.shutdown()


class _OpenSpan:
    def __init__(self, span: Any) -> None:
        self._span = span
        self.is_recording = span.is_recording()

    def set(self, attributes: Attributes) -> None:
        self._span.set_attributes(_drop_none(attributes))


def _drop_none(attributes: Attributes) -> dict[str, Any]:
    return {name: value for name, value in attributes.items() if value is not None}


def create_tracing(settings: Settings) -> Tracing:
    """Create the tracing that the settings ask for: to their collector, or none."""
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
