"""Server ACLs. Spec: C-S API §Server Access Control Lists (ACLs) for rooms."""

from typing import Any

import pytest

from tessera.federation.acl import is_server_allowed

ALL = {"allow": ["*"]}


@pytest.mark.parametrize(
    ("acl", "server", "allowed"),
    [
        (None, "a.example", True),
        (ALL, "a.example", True),
        (ALL, "a.example:8448", True),
        ({}, "a.example", False),
        ({"allow": "*"}, "a.example", False),
        ({"allow": [5, None, "*"]}, "a.example", True),
        ({"allow": ["*"], "deny": ["*.evil.example"]}, "x.evil.example", False),
        ({"allow": ["*"], "deny": ["*.evil.example"]}, "X.EVIL.example:1", False),
        ({"allow": ["*"], "deny": ["*.evil.example"]}, "evil.example", True),
        ({"allow": ["*"], "deny": ["?.example"]}, "a.example", False),
        ({"allow": ["*.example"]}, "a.example.org", False),
        ({**ALL, "allow_ip_literals": False}, "1.2.3.4", False),
        ({**ALL, "allow_ip_literals": False}, "1.2.3.4:80", False),
        ({**ALL, "allow_ip_literals": False}, "[::1]:80", False),
        ({**ALL, "allow_ip_literals": False}, "1.2.3.4.example", True),
        ({**ALL, "allow_ip_literals": "false"}, "1.2.3.4", True),
        ({**ALL, "allow_ip_literals": 0}, "1.2.3.4", True),
        ({"allow": ["[::1]"]}, "[::1]:80", True),
        ({"allow": ["*"], "deny": ["1.2.3.*"]}, "1.2.3.4", False),
    ],
)
def test_who_is_allowed(acl: dict[str, Any] | None, server: str, allowed: bool) -> None:
    assert is_server_allowed(acl, server) is allowed
