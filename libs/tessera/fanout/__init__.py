"""Wake-ups between services: hints over Redis in a cluster, callbacks in one process."""

from tessera.fanout.local import LocalFanout
from tessera.fanout.protocol import Fanout, ReplyAddresses, Subscriber, Subscription
from tessera.wakes import DeviceWake, PresenceChange, SessionEnd, TypingChange, UserWake

__all__ = [
    "DeviceWake",
    "Fanout",
    "LocalFanout",
    "PresenceChange",
    "ReplyAddresses",
    "SessionEnd",
    "Subscriber",
    "Subscription",
    "TypingChange",
    "UserWake",
]
