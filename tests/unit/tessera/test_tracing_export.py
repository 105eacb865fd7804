"""What leaves the process: OTLP over HTTP, and no waiting for a collector that is away."""

import socket
import time
from collections.abc import Iterator

import pytest

from tessera import tracing
from tests.fixtures.trace_collector import Collector, running_collector


@pytest.fixture
def collector() -> Iterator[Collector]:
    with running_collector() as server:
        yield server


def test_the_last_spans_are_sent_before_the_process_ends(collector: Collector) -> None:
    with tracing.tracing_to(collector.url, 1.0, "rooms-1"), tracing.request_span() as span:
        assert span is not None
        span.finish("send_message", "PUT", 200)
    (resource,) = collector.requests[0].resource_spans
    assert "tessera" in {pair.value.string_value for pair in resource.resource.attributes if pair.key == "service.name"}
    (sent,) = collector.spans
    assert (sent.process, sent.name) == ("rooms-1", "PUT send_message")
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


def test_a_collector_that_hangs_holds_up_nobody() -> None:
    """It takes the connection and never answers, while more is to be sent than one request takes."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        with tracing.tracing_to(f"http://127.0.0.1:{silent.getsockname()[1]}/v1/traces", 1.0, "rooms-1"):
            for _ in range(1_000):
                with tracing.request_span() as span:
                    assert span is not None
            ending = time.monotonic()
        assert time.monotonic() - ending < 2 * tracing.FLUSH_SECONDS


def test_without_a_collector_nothing_is_traced() -> None:
    with tracing.tracing_to(None, 1.0, "rooms-1"):
        assert not tracing.is_on()
