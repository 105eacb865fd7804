"""Where traces go. Spec: none; DESIGN.md section 9."""

from typing import Annotated

from pydantic import AfterValidator, Field

from tessera.config.values import Section


def _check_endpoint(url: str) -> str:
    if not url.startswith(("https://", "http://")) or len(url) <= len("https://"):
        raise ValueError("must be a URL such as http://collector:4318/v1/traces")
    return url


class TelemetrySettings(Section):
    """Traces by OpenTelemetry. Metrics need no setting: they are at /metrics.

    Attributes:
        otlp_endpoint: of a collector that takes OTLP over HTTP; absent, nothing is traced and nothing spent on it.
        sample_ratio: the share of requests that are followed.
    """

    otlp_endpoint: Annotated[str, AfterValidator(_check_endpoint)] | None = None
    sample_ratio: Annotated[float, Field(ge=0, le=1)] = 0.01
