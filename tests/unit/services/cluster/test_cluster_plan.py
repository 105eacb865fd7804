"""Which processes a small cluster has, and where requests go."""

import re
from pathlib import Path

import pytest

from services.cluster.nginx import nginx_config
from services.cluster.plan import Counts, count_of, plan_processes, routed_prefixes, service_for
from tessera.config import Settings


@pytest.mark.parametrize(
    ("path", "service"),
    [
        ("/_matrix/client/v3/sync", "sync"),
        ("/_matrix/client/r0/sync", "sync"),
        ("/_matrix/client/v3/keys/changes", "sync"),
        ("/_matrix/client/v4/sync", "sync"),
        ("/_matrix/client/unstable/org.matrix.simplified_msc3575/sync", "sync"),
        ("/_matrix/client/unstable/orgXmatrix.simplified_msc3575/sync", "gateway"),
        ("/_matrix/client/v3/keys/query", "gateway"),
        ("/_matrix/client/v3/sync/", "gateway"),
        ("/_matrix/client/v3/rooms/!a:b/sync", "gateway"),
        ("/_matrix/client/v1/media/config", "media"),
        ("/_matrix/client/v3/media/config", "gateway"),
        ("/_matrix/media/v3/upload", "media"),
        ("/_matrix/client/versions", "gateway"),
        ("/_matrix/federation/v1/send/1", "federation-in"),
        ("/_matrix/key/v2/server", "federation-in"),
        ("/_matrix/federation/v1/media/download/a", "media"),
        ("/.well-known/matrix/client", "gateway"),
        ("/", "gateway"),
    ],
)
def test_paths_go_to_their_service(path: str, service: str) -> None:
    assert service_for(path) == service
    by_pattern = next((to for pattern, to in routed_prefixes() if re.search(pattern, path)), "gateway")
    assert by_pattern == service


def test_writers_begin_first_and_every_process_has_a_name_and_a_port_of_its_own() -> None:
    counts = Counts(gateways=2, writers=3, syncs=1, media=0, projectors=1)
    ports = list(range(7000, 7000 + count_of(counts)))
    planned = plan_processes(Path("/c/homeserver.yaml"), counts, ports, Path("/logs"))
    names = ["rooms-1", "rooms-2", "rooms-3", "projector-1", "sync-1"]
    names += ["federation-in-1", "federation-out-1", "push-1", "gateway-1", "gateway-2"]
    assert [one.name for one in planned] == names
    assert [one.stage for one in planned] == [0, 0, 0, 1, 2, 2, 1, 1, 2, 2]
    assert {one.port for one in planned} == set(ports)
    assert planned[0].arguments[-2:] == ("--name", "rooms-1")
    assert planned[0].log == Path("/logs/rooms-1.log")


def test_nginx_knows_every_process_that_answers_clients() -> None:
    settings = Settings.for_tests(listeners=[{"port": 8008, "bind_addresses": ["127.0.0.1", "::1"]}])
    counts = Counts(gateways=2, writers=1, syncs=2, media=1, projectors=1)
    planned = plan_processes(Path("/c"), counts, range(7000, 7000 + count_of(counts)), Path("/logs"))
    text = nginx_config(settings, settings.listeners, planned)
    assert "listen 127.0.0.1:8008;" in text
    assert "listen [::1]:8008;" in text
    answering = [one for one in planned if one.service in ("gateway", "sync", "media", "federation-in")]
    assert all(f"server 127.0.0.1:{one.port} " in text for one in answering)
    assert not any(f":{one.port} " in text for one in planned if one not in answering)
    assert text.count("{") == text.count("}")
