"""What leaves the process: OTLP over HTTP, and no waiting for a collector that is away."""

import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from tessera import tracing


class Collector(HTTPServer):
    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.requests: list[ExportTraceServiceRequest] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1/traces"


class Handler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        assert isinstance(self.server, Collector)
        self.server.requests.append(ExportTraceServiceRequest.FromString(body))
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_args: object) -> None:
        """Quiet."""


@pytest.fixture
def collector() -> Iterator[Collector]:
    with Collector() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def test_the_last_spans_are_sent_before_the_process_ends(collector: Collector) -> None:
    with tracing.tracing_to(collector.url, 1.0, "rooms-1"), tracing.request_span() as span:
        assert span is not None
        span.finish("send_message", "PUT", 200)
    (resource,) = collector.requests[0].resource_spans
    attributes = {pair.key: pair.value.string_value for pair in resource.resource.attributes}
    assert attributes["service.name"] == "tessera"
    assert attributes["service.instance.id"] == "rooms-1"
    assert resource.scope_spans[0].spans[0].name == "PUT send_message"
    assert not tracing.is_on()


def test_a_collector_that_is_away_holds_up_nobody() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        started = time.monotonic()
        with (
            tracing.tracing_to(f"http://127.0.0.1:{unused.getsockname()[1]}/v1/traces", 1.0, "rooms-1"),
            tracing.request_span(),
        ):
            pass
    assert time.monotonic() - started < 2 * tracing.FLUSH_SECONDS


def test_without_a_collector_nothing_is_traced() -> None:
    with tracing.tracing_to(None, 1.0, "rooms-1"):
        assert not tracing.is_on()
