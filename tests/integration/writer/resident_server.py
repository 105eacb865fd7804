"""Another server that has all of a room, and answers as one does."""

from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import unquote

from peer_world import PeerWorld
from remote_room import THERE, RemoteRoom

from matrixcore.events import Event
from matrixcore.identifiers import EventId, ServerName
from tessera.federation.errors import PeerRefused


def fields(events: Sequence[Event]) -> list[Mapping[str, Any]]:
    """Events as answers have them."""
    return [dict(event.fields) for event in events]


class Resident:
    """A server that has all of a room, and answers as one does."""

    def __init__(self, peer: PeerWorld, room: RemoteRoom, server: ServerName = THERE, history: int = 20) -> None:
        self.room = room
        self.history = history
        answers: dict[str, Any] = {
            "get_missing_events": self.missing,
            "state_ids": self.state_ids,
            "state": self.state,
            "event_auth": self.event_auth,
            "event": self.event,
            "backfill": self.backfill,
            "timestamp_to_event": self.by_time,
        }
        for name, answer in answers.items():
            peer.peers.answers[server, name + "/"] = answer

    def missing(self, body: Mapping[str, Any]) -> dict[str, Any]:
        found: dict[EventId, Event] = {}
        queue = list(body["latest_events"])
        while queue and len(found) < min(self.history, body["limit"]):
            for prev in self.room.events[queue.pop(0)].prev_events:
                if prev not in found and prev not in body["earliest_events"]:
                    found[prev] = self.room.events[prev]
                    queue.append(prev)
        return {"events": fields(list(found.values())[::-1])}

    def backfill(self, query: Mapping[str, Any]) -> dict[str, Any]:
        found: dict[EventId, Event] = {}
        queue = list(query["v"])
        while queue and len(found) < min(self.history, int(query["limit"])):
            event = self.room.events[queue.pop(0)]
            found[event.event_id] = event
            queue += [prev for prev in event.prev_events if prev not in found and prev not in queue]
        return {"origin": THERE, "origin_server_ts": 1, "pdus": fields(list(found.values()))}

    def by_time(self, query: Mapping[str, Any]) -> dict[str, Any]:
        ts, backwards = int(query["ts"]), query["dir"] == "b"
        times = {e: event.origin_server_ts for e, event in self.room.events.items()}
        near = [e for e, at in times.items() if (at <= ts if backwards else at >= ts)]
        if not near:
            raise PeerRefused(404, "M_NOT_FOUND", "nothing")
        nearest = min(near, key=lambda e: abs(times[e] - ts))
        return {"event_id": nearest, "origin_server_ts": times[nearest]}

    def state_ids(self, query: Mapping[str, Any]) -> dict[str, Any]:
        state = list(self.room.before(self.room.events[query["event_id"]].prev_events).values())
        return {"pdu_ids": state, "auth_chain_ids": self.chain(state)}

    def state(self, query: Mapping[str, Any]) -> dict[str, Any]:
        ids = self.state_ids(query)
        return {
            "pdus": fields([self.room.events[e] for e in ids["pdu_ids"]]),
            "auth_chain": fields([self.room.events[e] for e in ids["auth_chain_ids"]]),
        }

    def event_auth(self, query: Mapping[str, Any]) -> dict[str, Any]:
        event_id = EventId(unquote(query["path"].rpartition("/")[2]))
        return {"auth_chain": fields([self.room.events[e] for e in self.chain([event_id])])}

    def event(self, query: Mapping[str, Any]) -> dict[str, Any]:
        event_id = EventId(unquote(query["path"].rpartition("/")[2]))
        return {"origin": THERE, "origin_server_ts": 1, "pdus": fields([self.room.events[event_id]])}

    def chain(self, event_ids: Sequence[EventId]) -> list[EventId]:
        chain: dict[EventId, None] = {}
        queue = list(event_ids)
        while queue:
            for cited in self.room.events[queue.pop()].auth_events:
                if cited not in chain:
                    chain[cited] = None
                    queue.append(cited)
        return list(chain)
