"""An event loop whose time is a number: it jumps to the next timer as soon as nothing real is under way.

What is real is PostgreSQL alone. It is asked one statement after the other, and its answers are held back and handed
over at moments that the seed chooses, so that nothing depends on how fast the machine is. While an answer is
outstanding the time stands still, unless PostgreSQL itself waits for a lock: then time goes on without that answer.
"""

import asyncio
import selectors
import struct
import time
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import Executor
from contextvars import Context, ContextVar
from random import Random
from typing import Any, Protocol

from lock_watch import LockWatch
from numbering import next_number

PATIENCE_SECONDS = (0.004, 0.2)  # of real time, before and between looks at who waits for a lock
MAX_ANSWER_SECONDS = 30.0  # of real time
LOCKED_SPEED = 20  # virtual seconds in a real one while PostgreSQL waits for a lock: its own time-outs are real
_CANCEL_CODE = 80877102
# A request that ends with Sync is answered up to ReadyForQuery, one that ends with Flush (here a Describe) up to a row
# description, the word that there is none, or an error.
_READY, _DESCRIBED = b"Z", b"TnE"


class Place(Protocol):
    """The simulated process that a connection belongs to."""

    @property
    def dead(self) -> bool:
        """Nothing is handed over to it any more."""

    @property
    def halted(self) -> bool:
        """Paused or dead: nothing is handed over to it now."""


# No turn of the loop takes no time: a timer is run up to a nanosecond early, and whoever then waits for the rest of it
# would do so for ever.
TICK_SECONDS = 1e-9

Ready = list[tuple[selectors.SelectorKey, int]]
Select = Callable[[float | None], Ready]
HERE: ContextVar[Any] = ContextVar("simulated process", default=None)


class _JumpingSelector(selectors.BaseSelector):
    """Polls the real sockets and moves the virtual time where the loop would wait."""

    def __init__(self, loop: "VirtualLoop") -> None:
        self._loop = loop
        self._real = selectors.DefaultSelector()

    def register(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        return self._real.register(fileobj, events, data)

    def unregister(self, fileobj: Any) -> selectors.SelectorKey:
        return self._real.unregister(fileobj)

    def modify(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        return self._real.modify(fileobj, events, data)

    def select(self, timeout: float | None = None) -> Ready:
        if timeout == 0:  # what has come meanwhile is looked at when there is nothing else to do, whenever it came
            self._loop.jump(TICK_SECONDS)
            return []
        if ready := self._loop.wait_for_answers(self._real.select):
            return ready
        if timeout is None:
            return self._real.select(PATIENCE_SECONDS[1])
        if self._loop.blocked and (ready := self._real.select(timeout / LOCKED_SPEED)):
            return ready
        self._loop.jump(timeout + TICK_SECONDS)
        return []

    def close(self) -> None:
        self._real.close()

    def get_map(self) -> Any:
        return self._real.get_map()


class VirtualLoop(asyncio.SelectorEventLoop):
    """Virtual time, and PostgreSQL's answers in an order of the seed's choosing."""

    def __init__(self, random: Random, watch: LockWatch) -> None:
        self._now = 0.0
        self._watch = watch
        self._random = random
        self.wires: set[_Wire] = set()
        self.expected: set[_Wire] = set()  # those on which PostgreSQL owes an answer that is likely to come at once
        self.blocked: set[_Wire] = set()  # those whose statement waits for a lock
        self._stopped: set[_Wire] = set()  # those whose answers wait until their process goes on
        self._dying: set[int] = set()  # backends whose clients were killed, which they are about to learn
        self._is_stirred = False  # whether a lock may have been let go since they were last looked at
        self.in_line: deque[_Wire] = deque()  # those that ask when nobody is owed an answer
        super().__init__(_JumpingSelector(self))

    def time(self) -> float:
        return self._now

    def jump(self, seconds: float) -> None:
        """Nothing is to be done for so long."""
        self._now += seconds

    def wait_for_answers(self, select: Select) -> Ready:
        """What has come when PostgreSQL has done all that it can do now."""
        # Real time, and nothing else may use it: only how long PostgreSQL is waited for.
        until = time.monotonic() + MAX_ANSWER_SECONDS
        patience, most = PATIENCE_SECONDS
        while True:
            while self.expected or self._dying:
                answered = {key.fd for key, _ in select(patience)}
                if not self._dying and answered >= {wire.fd for wire in self.expected}:
                    break
                if time.monotonic() > until:
                    raise TimeoutError("PostgreSQL neither answers nor waits for a lock")
                patience = min(2 * patience, most)
                self._look_for_locks()
            if not (self._is_stirred and self.blocked):
                break
            # What was done meanwhile may have let go what others wait for.
            self._is_stirred = False
            self._look_for_locks()
        self._is_stirred = False
        return sorted(select(0), key=lambda one: one[0].fd)

    def _look_for_locks(self) -> None:
        """Tell those that wait for a lock from those that are about to answer."""
        backends = self._watch.look()
        self._dying &= backends.alive - backends.waiting
        for wire in tuple(self.expected | self.blocked):
            wire.set_blocked(wire.pid in backends.waiting)

    def stir(self) -> None:
        """PostgreSQL has something to do, and may let go a lock by it."""
        self._is_stirred = True

    def serve_next(self) -> None:
        """Let the next one ask: side by side, statements would end in an order of PostgreSQL's choosing."""
        while self.in_line and not self.expected:
            self.in_line.popleft().ask()

    def stop_wire(self, wire: "_Wire") -> None:
        """A wire's process stands still: its answers come when it goes on."""
        self._stopped.add(wire)

    def go_on(self, place: Place) -> None:
        """A process that stood still goes on."""
        for wire in sorted((wire for wire in self._stopped if wire.place is place), key=lambda wire: wire.fd):
            self._stopped.discard(wire)
            self.call_later(self.latency(), wire.deliver)

    def latency(self) -> float:
        """How long an answer takes, in virtual seconds."""
        return self._random.choice((0.0002, 0.0005, 0.001, 0.002, 0.02))

    def create_future(self) -> asyncio.Future[Any]:
        return _NumberedFuture(loop=self)

    def _asyncgen_finalizer_hook(self, agen: Any) -> None:
        """What a killed process left is not finished by others."""

    def run_in_executor(self, executor: Executor | None, func: Callable[..., Any], *args: Any) -> asyncio.Future[Any]:
        """At once: a thread would bring real time in."""
        future = self.create_future()
        try:
            future.set_result(func(*args))
        except Exception as error:
            future.set_exception(error)
        return future

    async def create_unix_connection(  # type: ignore[override]
        self, protocol_factory: Callable[[], asyncio.Protocol], path: Any = None, **options: Any
    ) -> tuple[asyncio.Transport, Any]:
        """PostgreSQL's socket, with the wire between the two."""
        place = HERE.get()
        wires: list[_Wire] = []

        def factory() -> asyncio.Protocol:
            wires.append(_Wire(self, protocol_factory(), place))
            return wires[0]

        await super().create_unix_connection(factory, path, **options)
        return wires[0].transport, wires[0].inner

    def cut(self, place: Place) -> None:
        """End the connections of a process as the kernel does when it dies."""
        for wire in sorted((wire for wire in self.wires if wire.place is place), key=lambda wire: wire.fd):
            self._dying.add(wire.pid)
            wire.cut()
        self.stir()


class _NumberedFuture(asyncio.Future[Any]):
    """Sets of these have the same order in every run: their addresses would not."""

    def __init__(self, *, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(loop=loop)
        self._number = next_number()

    def __hash__(self) -> int:
        return self._number


class NumberedTask(asyncio.Task[Any]):
    """As futures."""

    def __init__(
        self, coroutine: Coroutine[Any, Any, Any], *, loop: asyncio.AbstractEventLoop, context: Context | None
    ) -> None:
        self._number = next_number()  # before asyncio puts it into a set
        super().__init__(coroutine, loop=loop, context=context)

    def __hash__(self) -> int:
        return self._number


class _Wire(asyncio.Protocol):
    """Between asyncpg and its socket: counts what is owed, and holds answers back."""

    def __init__(self, loop: VirtualLoop, inner: asyncio.Protocol, place: Place | None) -> None:
        self.loop, self.inner, self.place = loop, inner, place
        self._awaited: deque[bytes] = deque()  # the kinds of messages that end each answer
        self._is_blocked = False
        self.transport: Any = None
        self._started = False
        self._sent = bytearray()
        self._received = bytearray()
        self._held: list[bytes] = []
        self._delivery_due = False
        self._lost: Exception | None = None
        self._is_lost = False
        self._unsent: list[bytes] = []
        self.pid = 0  # of the backend

    @property
    def fd(self) -> int:
        """The number of its socket."""
        number: int = self.transport.real.get_extra_info("socket").fileno()
        return number

    def set_blocked(self, is_blocked: bool) -> None:
        """Whether its statement waits for a lock."""
        self._is_blocked = is_blocked
        self._note()

    def _note(self) -> None:
        """Keep the loop's lists of who is waited for."""
        owes = bool(self._awaited) and not self._is_lost
        is_expected = owes and not (self._is_blocked or self._delivery_due or self._unsent)
        (self.loop.expected.add if is_expected else self.loop.expected.discard)(self)
        (self.loop.blocked.add if owes and self._is_blocked else self.loop.blocked.discard)(self)
        self.loop.serve_next()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.loop.wires.add(self)
        self.transport = _CountingTransport(transport, self)
        self.inner.connection_made(self.transport)

    def data_received(self, data: bytes) -> None:
        self._held.append(data)
        self._is_blocked = False
        if self._answers_end(data) or not self._started:
            self._deliver_later()
        self._note()

    def connection_lost(self, exc: Exception | None) -> None:
        self.loop.wires.discard(self)
        self._is_lost, self._lost = True, exc
        self._deliver_later()
        self._note()

    def pause_writing(self) -> None:
        self.inner.pause_writing()

    def resume_writing(self) -> None:
        self.inner.resume_writing()

    def send(self, data: bytes) -> None:
        """What asyncpg asks, as soon as it is this one's turn."""
        self._unsent.append(data)
        if self.loop.expected - {self}:
            if len(self._unsent) == 1:
                self.loop.in_line.append(self)
                self._note()
        elif len(self._unsent) == 1:
            self.ask()

    def ask(self) -> None:
        """It is this one's turn."""
        data = b"".join(self._unsent)
        self._unsent.clear()
        self.loop.stir()
        if data and not self.transport.real.is_closing():
            self._note_sent(data)
            self.transport.real.write(data)

    def _note_sent(self, data: bytes) -> None:
        """Count the requests that end with an answer of their own."""
        self._sent += data
        self._is_blocked = False
        self._count_requests()
        self._note()

    def _count_requests(self) -> None:
        while True:
            if not self._started:
                if len(self._sent) < 8:
                    return
                length, code = struct.unpack_from("!ii", self._sent)
                if code == _CANCEL_CODE:
                    self._sent.clear()
                    return
                self._started = True
                self._awaited.append(_READY)
                del self._sent[:length]
                continue
            if len(self._sent) < 5:
                return
            (length,) = struct.unpack_from("!i", self._sent, 1)
            if len(self._sent) < length + 1:
                return
            if self._sent[0] in b"SQ":
                self._awaited.append(_READY)
            elif self._sent[0] == ord("H"):
                self._awaited.append(_DESCRIBED)
            del self._sent[: length + 1]

    def _answers_end(self, data: bytes) -> bool:
        """Whether a ReadyForQuery, or what asks for a password, has come."""
        self._received += data
        ended = False
        while len(self._received) >= 5:
            (length,) = struct.unpack_from("!i", self._received, 1)
            if len(self._received) < length + 1:
                break
            kind = self._received[0]
            if kind == ord("Z"):
                while self._awaited and self._awaited.popleft() != _READY:
                    pass
                ended = True
            elif self._awaited and kind in self._awaited[0]:
                self._awaited.popleft()
                ended = True
            elif kind == ord("R"):
                ended = True
            elif kind == ord("K"):
                (self.pid,) = struct.unpack_from("!i", self._received, 5)
            del self._received[: length + 1]
        return ended

    def _deliver_later(self) -> None:
        if not self._delivery_due:
            self._delivery_due = True
            self.loop.call_later(self.loop.latency(), self.deliver)

    def deliver(self) -> None:
        """Hand over what has come."""
        if self.place is not None and self.place.halted:
            if not self.place.dead:
                self.loop.stop_wire(self)
            return
        self._delivery_due = False
        held, self._held = self._held, []
        for data in held:
            self.inner.data_received(data)
        if self._is_lost:
            self.inner.connection_lost(self._lost)
        self._note()

    def cut(self) -> None:
        """The process is gone: PostgreSQL sees the end of the connection, the process sees nothing any more."""
        self.loop.wires.discard(self)
        self._held.clear()
        self._awaited.clear()
        self._unsent.clear()
        self._note()
        self.transport.real.abort()


class _CountingTransport(asyncio.Transport):
    """The socket as asyncpg sees it."""

    def __init__(self, real: Any, wire: _Wire) -> None:
        super().__init__()
        self.real = real
        self._wire = wire

    def write(self, data: Any) -> None:
        self._wire.send(bytes(data))

    def writelines(self, list_of_data: Sequence[Any]) -> None:  # type: ignore[override]
        self.write(b"".join(bytes(data) for data in list_of_data))

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return self.real.get_extra_info(name, default)

    def is_closing(self) -> bool:
        closing: bool = self.real.is_closing()
        return closing

    def close(self) -> None:
        self.real.close()

    def abort(self) -> None:
        self.real.abort()

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        self.real.set_write_buffer_limits(high, low)

    def get_write_buffer_size(self) -> int:
        size: int = self.real.get_write_buffer_size()
        return size

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self._wire.inner = protocol  # type: ignore[assignment]

    def get_protocol(self) -> asyncio.BaseProtocol:
        return self._wire.inner

    def pause_reading(self) -> None:
        self.real.pause_reading()

    def resume_reading(self) -> None:
        self.real.resume_reading()
