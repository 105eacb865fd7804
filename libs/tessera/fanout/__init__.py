"""Wake-ups between services: hints over Redis in a cluster, callbacks in one process."""

from tessera.fanout.local import LocalFanout
from tessera.fanout.protocol import Fanout, Subscriber, Subscription
from tessera.wakes import DeviceWake, PresenceChange, TypingChange, UserWake

__all__ = [
    "DeviceWake",
    "Fanout",
    "LocalFanout",
    "PresenceChange",
    "Subscriber",
    "Subscription",
    "TypingChange",
    "UserWake",
]
