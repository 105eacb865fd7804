"""What `tessera run` makes of its command line and configuration."""

import pytest

from services.run import SERVICES, instance_name, listeners_of
from tessera.config import Settings
from tessera.config.services import SERVICE_NAMES
from tessera.service import CannotStart

LISTENER = {"port": 9001, "bind_addresses": ["10.0.0.1"], "resources": [{"names": ["client", "health"]}]}
SETTINGS = Settings.for_tests(
    tessera={"services": {"gateway": {"listeners": [LISTENER]}}, "instance_name": "configured"}
)


def test_the_command_line_says_where_before_the_configuration() -> None:
    (told,) = listeners_of(SETTINGS, "gateway", 9000, ["127.0.0.1"])
    assert (told.port, told.bind_addresses) == (9000, ("127.0.0.1",))
    assert {"client", "media", "metrics", "health"} <= told.resource_names()
    (configured,) = listeners_of(SETTINGS, "gateway", None, ["127.0.0.1"])
    assert (configured.port, configured.bind_addresses) == (9001, ("10.0.0.1",))
    with pytest.raises(CannotStart, match=r"--port, or tessera\.services\.sync\.listeners"):
        listeners_of(SETTINGS, "sync", None, ["127.0.0.1"])


def test_a_process_has_a_name() -> None:
    assert instance_name(SETTINGS, "told") == "told"
    assert instance_name(SETTINGS, None) == "configured"
    assert instance_name(Settings.for_tests(), None)


@pytest.mark.parametrize("service", SERVICE_NAMES)
def test_every_service_that_is_offered_can_be_opened(service: str) -> None:
    assert callable(next(kind for name, kind in SERVICES.items() if name == service).load())
