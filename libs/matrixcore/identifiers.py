"""Identifiers and their grammar. Spec: Appendices §Identifier Grammar."""

from typing import NewType

ServerName = NewType("ServerName", str)
UserId = NewType("UserId", str)
RoomId = NewType("RoomId", str)
RoomAlias = NewType("RoomAlias", str)
EventId = NewType("EventId", str)
StateKey = tuple[str, str]  # (event type, state key)
