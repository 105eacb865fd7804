"""tessera.telemetry."""

import pytest
from pydantic import ValidationError

from tessera.config import Settings


def test_nothing_is_traced_unless_somebody_says_where_to() -> None:
    assert Settings.for_tests().tessera.telemetry.otlp_endpoint is None


def test_a_collector_and_a_share() -> None:
    telemetry = {"otlp_endpoint": "http://collector:4318/v1/traces", "sample_ratio": 0.5}
    made = Settings.for_tests(tessera={"telemetry": telemetry}).tessera.telemetry
    assert (made.otlp_endpoint, made.sample_ratio) == ("http://collector:4318/v1/traces", 0.5)


@pytest.mark.parametrize("wrong", [{"otlp_endpoint": "collector:4318"}, {"sample_ratio": 1.5}, {"sample_ratio": -1}])
def test_what_is_wrong_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        Settings.for_tests(tessera={"telemetry": wrong})
