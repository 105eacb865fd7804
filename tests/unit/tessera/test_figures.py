"""Figures read as prometheus-client's own would."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from tessera.figures import Spreads, Tallies

OBSERVED = (0.0, 0.5, 0.50001, 1.0, 7.5)


def without_times(registry: CollectorRegistry) -> list[str]:
    return [line for line in generate_latest(registry).decode().splitlines() if "_created" not in line]


def test_counters_and_gauges_read_like_the_librarys() -> None:
    ours, theirs = CollectorRegistry(), CollectorRegistry()
    tallies = Tallies("answers_total", "Answers", ("path",), registry=ours)
    counter = Counter("answers_total", "Answers", ("path",), registry=theirs)
    gauge = Tallies("parked", "Parked", kind="gauge", registry=ours).labels()
    their_gauge = Gauge("parked", "Parked", registry=theirs)
    for path, count in (("memory", 3), ("database", 1)):
        tallies.labels(path).inc()
        tallies.labels(path).inc(count)
        counter.labels(path).inc(count + 1)
    for one in (gauge, their_gauge):
        one.inc()
        one.inc()
        one.dec()
    assert without_times(ours) == without_times(theirs)
    assert ours.get_sample_value("answers_total", {"path": "memory"}) == 4


def test_histograms_read_like_the_librarys() -> None:
    ours, theirs = CollectorRegistry(), CollectorRegistry()
    buckets = (0.5, 1, 5)
    spread = Spreads("seconds", "Time", ("operation",), buckets=buckets, registry=ours).labels("sync")
    histogram = Histogram("seconds", "Time", ("operation",), buckets=buckets, registry=theirs).labels("sync")
    for value in OBSERVED:
        spread.observe(value)
        histogram.observe(value)
    assert without_times(ours) == without_times(theirs)
