"""State resolution v2 and v2.1 written down as the specification defines them: sets and recursion, slow and plain.

One thing is as Synapse has it, and so every room: a state's own events count to its auth chain.

The real implementation is compared with it on small rooms.
"""

from functools import cmp_to_key

from matrixcore.auth_events import POWER_LEVELS, auth_state_keys
from matrixcore.auth_rules import check_auth
from matrixcore.power_levels import PowerLevels
from matrixcore.verdicts import Accepted


class NaiveResolution:
    def __init__(self, rules, states, events):
        self.rules, self.states, self.events = rules, states, events
        self.is_v2_1 = rules.state_resolution.value == "v2.1"

    def chain(self, event_id):
        found = set()
        for cited in self.events[event_id].auth_events:
            found |= {cited} | self.chain(cited)
        return found

    def resolve(self):
        keys = {key for state in self.states for key in state}
        unconflicted, conflicted = {}, set()
        for key in keys:
            values = {state.get(key) for state in self.states}
            if len(values) == 1:
                unconflicted[key] = values.pop()
            else:
                conflicted |= values - {None}
        if not conflicted:
            return unconflicted
        chains = [set(state.values()).union(*map(self.chain, state.values())) for state in self.states]
        full = conflicted | (set.union(*chains) - set.intersection(*chains))
        if self.is_v2_1:
            full |= {
                event_id
                for event_id in self.events
                if any(event_id in self.chain(above) for above in conflicted) and self.chain(event_id) & conflicted
            }
        chosen = {event_id for event_id in full if self.is_power_event(event_id)}
        chosen |= {below for event_id in chosen for below in self.chain(event_id) & full}
        state = {} if self.is_v2_1 else dict(unconflicted)
        self.replay(state, self.power_order(chosen))
        self.replay(state, self.mainline_order(full - chosen, state.get(POWER_LEVELS)))
        return state | unconflicted

    def is_power_event(self, event_id):
        event = self.events[event_id]
        if event.type == "m.room.member":
            return event.content["membership"] in ("leave", "ban") and event.sender != event.state_key
        return event.type in ("m.room.power_levels", "m.room.join_rules")

    def cited(self, event_id, event_type):
        cited = [self.events[other] for other in self.events[event_id].auth_events]
        return next((event for event in cited if event.type == event_type), None)

    def power_order(self, chosen):
        def key(event_id):
            event = self.events[event_id]
            levels = PowerLevels.of(self.cited(event_id, "m.room.power_levels"), self.events["$create"])
            return -levels.user_level(event.sender), event.origin_server_ts, event_id

        ordered, left = [], set(chosen)
        while left:
            ready = [event_id for event_id in left if not self.chain(event_id) & left]
            ordered.append(min(ready, key=key))
            left.remove(ordered[-1])
        return ordered

    def mainline(self, event_id):
        """The power levels events that lead on from an event, itself not included."""
        found, event = [], self.cited(event_id, "m.room.power_levels")
        while event is not None:
            found.append(event.event_id)
            event = self.cited(event.event_id, "m.room.power_levels")
        return found

    def mainline_order(self, event_ids, head):
        line = [] if head is None else [head, *self.mainline(head)]

        def position(event_id):
            return next((line.index(other) for other in self.mainline(event_id) if other in line), float("inf"))

        def compare(one, other):
            x, y = self.events[one], self.events[other]
            mine = (-position(one), x.origin_server_ts, one)
            theirs = (-position(other), y.origin_server_ts, other)
            return -1 if mine < theirs else 1

        return sorted(event_ids, key=cmp_to_key(compare))

    def replay(self, state, ordered):
        for event_id in ordered:
            event = self.events[event_id]
            cited = {self.events[other].state_tuple: self.events[other] for other in event.auth_events}
            known = {}
            for key in auth_state_keys(event.type, event.state_key, event.sender, event.content, self.rules):
                if key in state:
                    known[key] = self.events[state[key]]
                elif key in cited:
                    known[key] = cited[key]
            create = self.events["$create"] if self.rules.room_id_is_create_event_id else None
            if isinstance(check_auth(event, known, create=create), Accepted):
                state[event.state_tuple] = event_id
