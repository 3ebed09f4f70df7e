"""One trace from the request to its candidates."""

import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from pydantic import ValidationError

from server.app import create_app
from server.observability.tracing import NoTracing, OpenTelemetry, create_tracing
from server.settings import Settings
from tests.fakes import KNOWN, SCORER, FakeEngines, WritingEngines, fake_served
from tests.unit.server.conftest import client_of

pytestmark = pytest.mark.anyio
ASKED = [{"role": "user", "content": KNOWN}]
N = 3


@pytest.fixture
def spans() -> InMemorySpanExporter:
    return InMemorySpanExporter()


@pytest.fixture
async def traced(engines: FakeEngines, spans: InMemorySpanExporter) -> AsyncIterator[httpx.AsyncClient]:
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(spans))
    app = create_app(Settings(max_n=16), engines, fake_served(), tracing=OpenTelemetry(provider))
    async with app.router.lifespan_context(app), client_of(app) as client:
        await engines.started.wait()
        yield client


def named(spans: InMemorySpanExporter, name: str) -> list[Any]:
    return [span for span in spans.get_finished_spans() if span.name == name]


async def test_a_block_is_a_span_of_its_answer(spans: InMemorySpanExporter) -> None:
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(spans))
    app = create_app(
        Settings(), engines := WritingEngines(), fake_served(scorer=SCORER), tracing=OpenTelemetry(provider)
    )
    async with app.router.lifespan_context(app), client_of(app) as client:
        await engines.started.wait()
        answer = (await client.post("/v1/controlled", json={"messages": ASKED, "k": 3, "block": 2})).json()
    [drawn] = named(spans, "generate")
    blocks = named(spans, "block")
    assert {span.parent.span_id for span in blocks} == {drawn.context.span_id}
    assert [span.attributes["infalign.block"] for span in blocks] == list(range(answer["controlled"]["blocks"]))
    for span in blocks:
        assert span.attributes["infalign.options"] == 3
        assert 0 <= span.attributes["infalign.option"] < 3
        assert 0 <= span.attributes["infalign.promised_quantile"] <= 1


@pytest.mark.parametrize("stream", [False, True])
async def test_a_request_is_one_trace(traced: httpx.AsyncClient, spans: InMemorySpanExporter, stream: bool) -> None:
    body = {"messages": ASKED, "best_of": N, "seed": 4, "stream": stream}
    answer = await traced.post("/v1/chat/completions", json=body, headers={"X-Request-Id": "r"})
    assert answer.status_code == 200
    found = spans.get_finished_spans()
    root = found[-1]
    assert Counter(span.name for span in found) == {
        "POST /v1/chat/completions": 1,
        "calibration": 1,
        "generate": N,
        "score": N,
    }
    assert root.name == "POST /v1/chat/completions"
    assert root.parent is None
    assert {span.context.trace_id for span in found} == {root.context.trace_id}
    assert {span.parent.span_id for span in found[:-1]} == {root.context.span_id}
    said = dict(root.attributes)
    assert (said["infalign.procedure"], said["infalign.n"], said["gen_ai.request.model"]) == ("best-of-3", N, "fake")
    assert (said["http.route"], said["infalign.request_id"]) == ("/v1/chat/completions", "r")
    assert said["http.response.status_code"] == 200


async def test_candidates_say_what_they_cost_and_what_they_are_worth(
    traced: httpx.AsyncClient, spans: InMemorySpanExporter
) -> None:
    body = {"messages": ASKED, "n": N, "seed": 4, "return_candidates": True}
    answer = (await traced.post("/v1/best-of-n", json=body)).json()
    drawn = {span.attributes["infalign.index"]: span.attributes for span in named(spans, "generate")}
    scored = {span.attributes["infalign.index"]: span.attributes for span in named(spans, "score")}
    assert set(drawn) == set(scored) == set(range(N))
    for candidate in answer["candidates"]:
        index = candidate["index"]
        assert scored[index]["infalign.reward"] == candidate["reward"]
        assert scored[index]["infalign.quantile"] == candidate["quantile"]
        assert drawn[index]["gen_ai.usage.output_tokens"] == candidate["completion_tokens"]
        assert drawn[index]["gen_ai.usage.input_tokens"] == answer["usage"]["prompt_tokens"]
        assert drawn[index]["gen_ai.request.seed"] == candidate["seed"]
        assert drawn[index]["gen_ai.request.model"] == "fake"
        assert drawn[index]["infalign.procedure"] == scored[index]["infalign.procedure"] == "best-of-3"
    (calibration,) = named(spans, "calibration")
    assert calibration.attributes["infalign.calibration.scope"] == "prompt"
    assert not any(KNOWN in str(value) for span in spans.get_finished_spans() for value in span.attributes.values())


async def test_a_trace_that_the_client_began_goes_on(traced: httpx.AsyncClient, spans: InMemorySpanExporter) -> None:
    trace, parent = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
    sent = {"traceparent": f"00-{trace}-{parent}-01"}
    await traced.post("/v1/best-of-n", json={"messages": ASKED, "n": 1}, headers=sent)
    root = spans.get_finished_spans()[-1]
    assert f"{root.context.trace_id:032x}" == trace
    assert f"{root.parent.span_id:016x}" == parent


async def test_failures_are_seen_and_probes_are_not(
    traced: httpx.AsyncClient, spans: InMemorySpanExporter, engines: FakeEngines
) -> None:
    for probe in ("/health", "/ready", "/metrics"):
        await traced.get(probe)
    assert not spans.get_finished_spans()
    engines.fail_scoring_after = 1
    answer = await traced.post("/v1/best-of-n", json={"messages": ASKED, "n": 2})
    assert answer.status_code == 503
    assert Counter(span.status.is_ok for span in named(spans, "score")) == {True: 1, False: 1}
    assert spans.get_finished_spans()[-1].attributes["http.response.status_code"] == 503


def test_traces_are_off_unless_there_is_a_collector() -> None:
    assert isinstance(create_tracing(Settings()), NoTracing)
    assert NoTracing().trace_id() is None
    with pytest.raises(ValidationError, match="otlp_endpoint"):
        Settings(otlp_endpoint="localhost:4318")


def test_without_a_collector_the_sdk_is_not_imported() -> None:
    code = (
        "import sys; from server.app import create_app; from server.settings import Settings; "
        "from tests.fakes import FakeEngines, fake_served; create_app(Settings(), FakeEngines(), fake_served()); "
        "sys.exit(any(name.startswith('opentelemetry') for name in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=120).returncode == 0


async def test_spans_reach_a_collector() -> None:
    import threading
    from http.server import BaseHTTPRequestHandler, HTTPServer

    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

    received: list[tuple[str, ExportTraceServiceRequest]] = []

    class Collector(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if self.headers.get("Content-Encoding") == "gzip":
                import gzip

                body = gzip.decompress(body)
            received.append((self.path, ExportTraceServiceRequest.FromString(body)))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    collector = HTTPServer(("127.0.0.1", 0), Collector)
    threading.Thread(target=collector.serve_forever, daemon=True).start()
    try:
        endpoint = f"http://127.0.0.1:{collector.server_port}/"
        app = create_app(Settings(otlp_endpoint=endpoint), engines := FakeEngines(), fake_served())
        async with app.router.lifespan_context(app), client_of(app) as client:
            await engines.started.wait()
            await client.post("/v1/best-of-n", json={"messages": ASKED, "n": N})
    finally:
        collector.shutdown()
        collector.server_close()
    assert {path for path, _ in received} == {"/v1/traces"}
    sent = [resource for _, request in received for resource in request.resource_spans]
    assert all("infalign" in str(resource.resource) for resource in sent)
    assert sum(len(scope.spans) for resource in sent for scope in resource.scope_spans) == 2 + 2 * N
