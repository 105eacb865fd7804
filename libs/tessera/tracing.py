"""Traces that follow one message from its request through the writer's batch to the listeners' /sync.

Off by default, and then a call here is one look at a variable. On, only what was sampled at its request is followed:
commands and records of other messages carry no `traceparent` and cost nothing on their way.

The tracer is the process's, like the metrics' registry: what is traced must not have to hand it around.

Spec: W3C Trace Context (traceparent); DESIGN.md section 9.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from threading import Thread
from typing import TYPE_CHECKING, Protocol

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import Link, Span, SpanContext, SpanKind, Tracer
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from tessera.records import LogRecord

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

MAX_LINKS = 64  # of a batch to what it serves
MAX_SPANS = 16  # of one announcement
EXPORT_SECONDS = 5  # for one request to the collector, repetitions included
FLUSH_SECONDS = 2.0  # for what is not sent when the process ends

_PROPAGATOR = TraceContextTextMapPropagator()
_tracer: Tracer | None = None


class Traced(Protocol):
    """What a command has that matters here."""

    @property
    def id(self) -> bytes: ...

    @property
    def traceparent(self) -> str: ...


def use_provider(provider: "TracerProvider | None") -> None:
    """Trace with this provider from now on; None switches tracing off."""
    global _tracer
    _tracer = None if provider is None else provider.get_tracer("tessera")


def is_on() -> bool:
    """Whether anything is traced."""
    return _tracer is not None


@contextmanager
def tracing_to(endpoint: str | None, sample_ratio: float, instance: str) -> Iterator[None]:
    """Send traces to a collector for as long as the block runs; without an endpoint nothing happens.

    Args:
        endpoint: OTLP over HTTP, as in https://collector:4318/v1/traces.
        sample_ratio: the share of requests that are followed, 0 to 1.
        instance: what this process is called in the traces.
    """
    if endpoint is None:
        yield
        return
    # Only now: these take memory that a server without traces need not spend.
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    provider = make_provider(sample_ratio, instance)
    exporter = OTLPSpanExporter(endpoint=endpoint, timeout=EXPORT_SECONDS)
    provider.add_span_processor(BatchSpanProcessor(exporter))
    use_provider(provider)
    try:
        yield
    finally:
        use_provider(None)
        # A collector that is away is tried again and again; nobody waits for that to end a process.
        last = Thread(target=provider.shutdown, name="last traces", daemon=True)
        last.start()
        last.join(FLUSH_SECONDS)
        exporter.shutdown()  # type: ignore[no-untyped-call]  # untyped in the SDK


def make_provider(sample_ratio: float, instance: str) -> "TracerProvider":
    """A provider that follows this share of the requests, and what they lead to; span processors are added to it."""
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased

    resource = Resource.create({"service.name": "tessera", "service.instance.id": instance})
    return TracerProvider(
        sampler=ParentBased(TraceIdRatioBased(sample_ratio)), resource=resource, shutdown_on_exit=False
    )


@dataclass(slots=True)
class RequestSpan:
    """The span of an HTTP request, named when the route is known."""

    span: Span

    def finish(self, operation: str, method: str, status: int) -> None:
        """Say what it was and how it ended. `operation` is a handler's name, never a part of a path."""
        if self.span.is_recording():
            self.span.update_name(f"{method} {operation}")
            self.span.set_attribute("http.request.method", method)
            self.span.set_attribute("http.response.status_code", status)


@contextmanager
def request_span() -> Iterator[RequestSpan | None]:
    """A trace begins with a request; None when tracing is off.

    A traceparent that a client sends is not looked at: it could have everything sampled.
    """
    if _tracer is None:
        yield None
        return
    with _tracer.start_as_current_span("request", context=Context(), kind=SpanKind.SERVER) as span:
        yield RequestSpan(span)


@contextmanager
def submitting() -> Iterator[str]:
    """The span of a command from its submission to its outcome; the traceparent that it takes along, or ""."""
    if _tracer is None or not _current().trace_flags.sampled:
        yield ""
        return
    with _tracer.start_as_current_span("room_commands.submit", kind=SpanKind.PRODUCER) as span:
        yield _traceparent_of(span)


class BatchTrace:
    """What one batch of the writer does for the commands that are followed.

    The batch is one span, in the trace of the first of them and linked to all; each has a span of its own in its own
    trace, linked to the batch.
    """

    def __init__(self, tracer: Tracer, followed: Mapping[bytes, str], commands: int) -> None:
        self._tracer = tracer
        parents = {command_id: _context_of(traceparent) for command_id, traceparent in followed.items()}
        links = [Link(_span_context(parent)) for parent in list(parents.values())[:MAX_LINKS]]
        self._span = tracer.start_span(
            "rooms.batch",
            context=next(iter(parents.values())),
            kind=SpanKind.CONSUMER,
            links=links,
            attributes={"tessera.batch.commands": commands},
        )
        to_batch = [Link(self._span.get_span_context())]
        self._commands = {
            command_id: tracer.start_span("rooms.append", context=parent, kind=SpanKind.CONSUMER, links=to_batch)
            for command_id, parent in parents.items()
        }

    def phase(self, name: str) -> AbstractContextManager[Span]:
        """A part of the batch's work, such as "rooms.commit"."""
        return self._tracer.start_as_current_span(name, context=trace.set_span_in_context(self._span, Context()))

    def stamp(self, command_id: bytes, records: list[LogRecord], first: int) -> None:
        """Give the records that a command made, those from index `first`, its traceparent to take along."""
        span = self._commands.get(command_id)
        if span is not None:
            traceparent = _traceparent_of(span)
            records[first:] = [replace(record, traceparent=traceparent) for record in records[first:]]

    def end(self) -> None:
        """The batch has ended, however."""
        for span in self._commands.values():
            span.end()
        self._span.end()


def begin_batch(commands: Sequence[Traced]) -> BatchTrace | None:
    """The trace of a batch; None if tracing is off or none of its commands is followed."""
    if _tracer is None:
        return None
    followed = {command.id: command.traceparent for command in commands if command.traceparent}
    return BatchTrace(_tracer, followed, len(commands)) if followed else None


_NOTHING: AbstractContextManager[None] = nullcontext()


def phase_of(batch: BatchTrace | None, name: str) -> AbstractContextManager[object]:
    """A part of a batch's work, if it is followed."""
    return _NOTHING if batch is None else batch.phase(name)


def announcing(records: Sequence[LogRecord]) -> AbstractContextManager[object]:
    """The announcement of records to room.log: a span in the trace of each that is followed."""
    return _NOTHING if _tracer is None else _announcing(_tracer, records)


@contextmanager
def _announcing(tracer: Tracer, records: Sequence[LogRecord]) -> Iterator[None]:
    followed = [record for record in records if record.traceparent][:MAX_SPANS]
    spans = [
        tracer.start_span(
            "rooms.announce",
            context=_context_of(record.traceparent),
            kind=SpanKind.PRODUCER,
            attributes={"tessera.partition": record.partition, "tessera.position": record.position},
        )
        for record in followed
    ]
    try:
        yield
    finally:
        for span in spans:
            span.end()


def note_delivery(record: LogRecord, waited_seconds: float, now_ms: int) -> None:
    """A listener's answer carries a record: a span in the message's trace, linked to the listener's request.

    Args:
        waited_seconds: since the record was heard of here; the span begins then.
        now_ms: when the answer was ready.
    """
    if _tracer is None or not record.traceparent:
        return
    request = _current()
    span = _tracer.start_span(
        "sync.deliver",
        context=_context_of(record.traceparent),
        kind=SpanKind.CONSUMER,
        links=[Link(request)] if request.is_valid else None,
        attributes={"tessera.partition": record.partition, "tessera.position": record.position},
        start_time=int(now_ms * 1e6 - waited_seconds * 1e9),
    )
    span.end(end_time=now_ms * 1_000_000)


def _current() -> SpanContext:
    return trace.get_current_span().get_span_context()


def _traceparent_of(span: Span) -> str:
    context = span.get_span_context()
    return f"00-{context.trace_id:032x}-{context.span_id:016x}-{int(context.trace_flags):02x}"


def _context_of(traceparent: str) -> Context:
    """The remote parent that a traceparent names; one that is malformed begins a trace of its own."""
    return _PROPAGATOR.extract({"traceparent": traceparent}, context=Context())


def _span_context(context: Context) -> SpanContext:
    return trace.get_current_span(context).get_span_context()
