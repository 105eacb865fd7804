"""Tracing by itself: what is followed, how spans hang together, and that off means off."""

from dataclasses import dataclass

from opentelemetry.sdk.trace import ReadableSpan

from matrixcore.identifiers import EventId, RoomId, UserId
from tessera import tracing
from tessera.records import (
    EventBody,
    LogRecord,
    PartitionBatch,
    RecordKind,
    decode_batch,
    decode_record,
    encode_batch,
    encode_record,
)
from tests.fixtures.recorded_traces import recorded_traces

TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
TRACE_ID = 0x0AF7651916CD43DD8448EB211C80319C


@dataclass(frozen=True)
class Followed:
    id: bytes
    traceparent: str = ""


def record(position: int, traceparent: str = "") -> LogRecord:
    body = EventBody(EventId("$e"), "m.room.message", None, UserId("@a:x"), 1, b'{"event_id":"$e"')
    return LogRecord(1, 7, position, RoomId("!r"), 0, RecordKind.EVENT, body, traceparent)


def trace_id(span: ReadableSpan) -> int:
    assert span.context is not None
    return span.context.trace_id


def test_off_nothing_is_made() -> None:
    assert not tracing.is_on()
    assert tracing.begin_batch([Followed(b"1", TRACEPARENT)]) is None
    with tracing.request_span() as span, tracing.submitting() as traceparent, tracing.announcing([record(1)]):
        assert span is None
        assert traceparent == ""
    tracing.note_delivery(record(1, TRACEPARENT), 0.1, 1_000)


def test_a_request_takes_its_trace_along() -> None:
    with recorded_traces() as traces:
        with tracing.request_span() as request, tracing.submitting() as traceparent:
            assert request is not None
            request.finish("send_message", "PUT", 200)
        sent, put = traces.spans
        assert put.name == "PUT send_message"
        assert put.attributes is not None
        assert put.attributes["http.response.status_code"] == 200
        assert sent.context is not None
        version, trace, parent, flags = traceparent.split("-")
        assert (version, trace, parent) == ("00", f"{trace_id(put):032x}", f"{sent.context.span_id:016x}")
        assert int(flags, 16) & 1, "sampled"


def test_what_is_not_sampled_carries_nothing() -> None:
    with recorded_traces(sample_ratio=0) as traces:
        with tracing.request_span(), tracing.submitting() as traceparent:
            assert traceparent == ""
        assert traces.spans == []


def test_work_outside_requests_begins_no_trace() -> None:
    with recorded_traces() as traces:
        with tracing.submitting() as traceparent:
            assert traceparent == ""
        assert tracing.begin_batch([Followed(b"1"), Followed(b"2")]) is None
        assert traces.spans == []


def test_a_batch_serves_many_traces() -> None:
    other = TRACEPARENT.replace("0af7", "0bf8")
    with recorded_traces() as traces:
        batch = tracing.begin_batch([Followed(b"1", TRACEPARENT), Followed(b"2", other), Followed(b"3")])
        assert batch is not None
        with tracing.phase_of(batch, "rooms.commit"):
            pass
        records = [record(1), record(2)]
        batch.stamp(b"2", records, 1)
        batch.stamp(b"3", records, 0)
        batch.end()
        assert records[0].traceparent == ""
        assert records[1].traceparent.split("-")[1] == other.split("-")[1]
        whole = traces.only("rooms.batch")
        assert len(whole.links) == 2
        assert whole.attributes == {"tessera.batch.commands": 3}
        assert traces.only("rooms.commit").parent == whole.context
        appends = traces.named("rooms.append")
        assert {trace_id(span) for span in appends} == {TRACE_ID, int(other.split("-")[1], 16)}
        assert all(span.links[0].context == whole.context for span in appends)


def test_a_malformed_traceparent_harms_nobody() -> None:
    with recorded_traces() as traces:
        batch = tracing.begin_batch([Followed(b"1", "00-nonsense")])
        assert batch is not None
        batch.end()
        with tracing.announcing([record(1, "garbage")]):
            pass
        tracing.note_delivery(record(1, "é"), 0.0, 1_000)
        assert len(traces.spans) == 4


def test_an_announcement_makes_a_bounded_number_of_spans() -> None:
    with recorded_traces() as traces:
        with tracing.announcing([record(position, TRACEPARENT) for position in range(1, 101)]):
            pass
        assert len(traces.spans) == tracing.MAX_SPANS
        assert {trace_id(span) for span in traces.spans} == {TRACE_ID}


def test_a_delivery_begins_when_the_record_came() -> None:
    with recorded_traces() as traces:
        with tracing.request_span() as request:
            assert request is not None
            tracing.note_delivery(record(3, TRACEPARENT), 0.25, 1_700_000_000_000)
        span = traces.only("sync.deliver")
        assert trace_id(span) == TRACE_ID
        assert span.start_time is not None
        assert span.end_time is not None
        assert abs(span.end_time - span.start_time - 250_000_000) < 1_000
        assert span.links[0].context == request.span.get_span_context()


def test_records_carry_the_trace_over_topics_and_channels() -> None:
    followed = record(5, TRACEPARENT)
    assert decode_record(encode_record(followed)).traceparent == TRACEPARENT
    assert decode_record(encode_record(record(5))).traceparent == ""
    batch = PartitionBatch(1, 7, 5, 6, (followed, record(6)))
    assert [one.traceparent for one in decode_batch(encode_batch(batch)).records] == [TRACEPARENT, ""]
    assert followed == record(5), "it is the same record, followed or not"
