"""User-interactive authentication, one piece for every operation that asks for it.

Sessions are rows, so that any gateway may take the next request. A session is bound to its operation and
to the identity of what is asked (whose device, which account): it authorises nothing else.

Spec: C-S API §User-Interactive Authentication API.
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256
from typing import Any, ClassVar, Protocol

import orjson

from matrixcore.identifiers import ServerName, UserId
from services.gateway.login_attempts import LoginAttempts
from services.gateway.passwords import Passwords
from services.gateway.user_identifiers import find_login_user
from tessera.clock import Clock
from tessera.http.errors import BadJson, MatrixError, NotFound
from tessera.ids import IdSource
from tessera.storage import uia_sessions, users
from tessera.storage.database import Database, Transaction
from tessera.storage.uia_sessions import UiaSession

DUMMY = "m.login.dummy"
OAUTH = "m.oauth"
OAUTH_BEFORE = "org.matrix.cross_signing_reset"  # as it was called before Matrix 1.17
PASSWORD = "m.login.password"  # noqa: S105  the name of a stage
SESSION_LIFETIME_MS = 15 * 60 * 1000

Flows = Sequence[Sequence[str]]

DUMMY_FLOWS: Flows = ((DUMMY,),)
PASSWORD_FLOWS: Flows = ((PASSWORD,),)
OAUTH_FLOWS: Flows = ((OAUTH,), (OAUTH_BEFORE,))


class UserInteractionRequired(MatrixError):
    """401 with the flows, the session and the stages done; errcode and error only after a failed stage."""

    def __init__(
        self,
        session_id: str,
        flows: Flows,
        completed: Sequence[str],
        errcode: str | None,
        error: str | None,
        params: Mapping[str, object] | None = None,
    ) -> None:
        self.session_id = session_id
        super().__init__(error or "Further authentication is required", status=401, errcode=errcode or "M_UNAUTHORIZED")
        self.body: dict[str, object] = {
            "flows": [{"stages": list(flow)} for flow in flows],
            "params": dict(params or {}),
            "session": session_id,
        }
        if completed:
            self.body["completed"] = list(completed)
        if errcode is not None:
            self.body |= {"errcode": errcode, "error": error}


@dataclass(frozen=True, slots=True)
class UiaRequest:
    """What is to be authorised.

    Attributes:
        operation: the operationId.
        identity: whose and which (user, device, new name); another identity needs another session.
        flows: any of them, with its stages in order, is enough.
        user_id: whose password the stage m.login.password takes.
    """

    operation: str
    identity: tuple[str, ...]
    flows: Flows
    user_id: UserId | None = None

    @property
    def digest(self) -> bytes:
        """The identity as sessions keep it."""
        return sha256(orjson.dumps(self.identity)).digest()


@dataclass(frozen=True, slots=True)
class Trial:
    """One try at a stage: what was asked for, in which session, and what the client says.

    The session is None only for stages that need none, see `Stage.needs_session`.
    """

    operation: str
    session_id: str | None
    auth: Mapping[str, object]


class StageFailed(Exception):
    """The stage is not passed; both texts are for the client."""

    def __init__(self, errcode: str, error: str) -> None:
        super().__init__(error)
        self.errcode = errcode
        self.error = error


class Stage(Protocol):
    """A way to prove something."""

    needs_session: ClassVar[bool]

    async def check(self, trial: Trial) -> object:
        """Return if it is passed: a JSON value for whoever asked for the proof, or None.

        Raises:
            StageFailed
        """
        ...

    def params(self, session_id: str) -> Mapping[str, object] | None:
        """What clients need to know in order to pass it in a session."""
        ...


@dataclass(frozen=True, slots=True)
class Proof:
    """All stages of a flow were passed; `facts` is what they found out, by the stage."""

    session_id: str | None
    facts: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class UserInteractiveAuth:
    """Asks users to prove who they are; built once for a service.

    Attributes:
        stages: by name, beside the password and the dummy.
        own_flows: how a user can prove to be it, where there are other ways than the password.
    """

    accounts: Database
    clock: Clock
    ids: IdSource
    passwords: Passwords
    attempts: LoginAttempts
    server_name: ServerName
    stages: Mapping[str, Stage] = field(default_factory=dict)
    own_flows: Callable[[UserId], Awaitable[Flows]] | None = None

    async def require(self, request: UiaRequest, auth: object) -> Proof:
        """Return once all stages of a flow are done; the session is then used up.

        Args:
            auth: the request's `auth`, None if it had none.

        Raises:
            UserInteractionRequired: what is still to be done, in a new session if the given one is unknown, has
                expired or was begun for something else.
            BadJson: `auth` makes no sense.
            LimitExceeded: too many wrong passwords.
        """
        proof = await self.prove(request, auth)
        if proof.session_id is not None:
            async with self.accounts.transaction() as tx:
                await self.consume(tx, proof)
        return proof

    async def prove(self, request: UiaRequest, auth: object) -> Proof:
        """The same without using the session up; the caller does with `consume`, where its change is made."""
        if self.own_flows is not None and request.user_id is not None and request.flows is PASSWORD_FLOWS:
            request = replace(request, flows=await self.own_flows(request.user_id))
        if auth is None:
            raise await self._challenge(request, None, ())
        if not isinstance(auth, Mapping):
            raise BadJson("auth must be an object")
        session_id, session = await self._find_session(request, auth.get("session"))
        completed = () if session is None else session.completed
        facts = {} if session is None else dict(session.facts)
        name = auth.get("type")
        if name is not None and name not in completed:
            if not isinstance(name, str) or name not in _next_stages(request.flows, completed):
                raise await self._challenge(request, session_id, completed, "M_UNRECOGNIZED", "No such stage is due")
            if session_id is None and name in self.stages and self.stages[name].needs_session:
                session_id = await self._begin(request, completed)
            try:
                fact = await self._check(request, name, Trial(request.operation, session_id, auth))
            except StageFailed as failed:
                raise await self._challenge(request, session_id, completed, failed.errcode, failed.error) from None
            facts |= {} if fact is None else {name: fact}
            completed = (*completed, name)
            if session_id is not None:
                async with self.accounts.transaction() as tx:
                    completed = await uia_sessions.complete_stage(tx, session_id, name, fact)
        if not _is_done(request.flows, completed):
            raise await self._challenge(request, session_id, completed)
        return Proof(session_id, facts)

    async def resume(self, request: UiaRequest) -> dict[str, str] | None:
        """The `auth` of a client that asks again without one for what it was asking for; None if it is new.

        For stages that are passed on a page, where there is nothing for a client to say: some ask until it is done.
        """
        assert request.user_id is not None, "sessions are found by their user"
        async with self.accounts.reading() as tx:
            session_id = await uia_sessions.find_newest(
                tx, request.user_id, request.operation, request.digest, now_ms=self.clock.now_ms()
            )
        return None if session_id is None else {"session": session_id}

    async def consume(self, tx: Transaction, proof: Proof) -> UiaSession | None:
        """Use a proof up.

        Raises:
            MatrixError: another request did (400).
        """
        if proof.session_id is None:
            return None
        session = await uia_sessions.take_session(tx, proof.session_id)
        if session is None:
            raise MatrixError("The session was used already", errcode="M_UNKNOWN", status=400)
        return session

    async def pass_stage(self, session_id: str, name: str, auth: Mapping[str, object]) -> None:
        """Pass a stage outside of the request that asks for it: from a fallback page.

        Raises:
            NotFound: there is no such session.
            StageFailed
        """
        async with self.accounts.reading() as tx:
            session = await uia_sessions.find_session(tx, session_id, now_ms=self.clock.now_ms())
        if session is None:
            raise NotFound("The session has expired or was used")
        if name in session.completed:
            return
        fact = None
        if name != DUMMY:
            fact = await self.stages[name].check(Trial(session.operation, session_id, auth))
        async with self.accounts.transaction() as tx:
            await uia_sessions.complete_stage(tx, session_id, name, fact)

    async def _find_session(self, request: UiaRequest, session_id: object) -> tuple[str | None, UiaSession | None]:
        """The session with its ID, or nothing if it is not there for this request."""
        if session_id is None:
            return None, None
        if not isinstance(session_id, str):
            raise BadJson("auth.session must be a string")
        async with self.accounts.reading() as tx:
            session = await uia_sessions.find_session(tx, session_id, now_ms=self.clock.now_ms())
        if session is None or session.operation != request.operation or session.identity != request.digest:
            return None, None
        return session_id, session

    async def _challenge(
        self,
        request: UiaRequest,
        session_id: str | None,
        completed: Sequence[str],
        errcode: str | None = None,
        error: str | None = None,
    ) -> UserInteractionRequired:
        """The 401 to raise; begins a session if there is none."""
        if session_id is None:
            session_id = await self._begin(request, completed)
        names = dict.fromkeys(stage for flow in request.flows for stage in flow if stage in self.stages)
        found = {name: self.stages[name].params(session_id) for name in names}
        params = {name: one for name, one in found.items() if one is not None}
        return UserInteractionRequired(session_id, request.flows, completed, errcode, error, params)

    async def _begin(self, request: UiaRequest, completed: Sequence[str]) -> str:
        session_id = self.ids.session_id()
        now_ms = self.clock.now_ms()
        async with self.accounts.transaction() as tx:
            await uia_sessions.add_session(
                tx,
                session_id,
                request.operation,
                request.digest,
                user_id=request.user_id,
                expires_ts=now_ms + SESSION_LIFETIME_MS,
                now_ms=now_ms,
            )
            for stage in completed:
                await uia_sessions.complete_stage(tx, session_id, stage)
        return session_id

    async def _check(self, request: UiaRequest, name: str, trial: Trial) -> object:
        if name == DUMMY:
            return None
        if name == PASSWORD:
            await self._check_password(request, trial.auth)
            return None
        return await self.stages[name].check(trial)

    async def _check_password(self, request: UiaRequest, auth: Mapping[str, object]) -> None:
        assert request.user_id is not None, "a password stage needs a user"
        password = auth.get("password")
        if not isinstance(password, str):
            raise BadJson("auth.password must be a string")
        # Clients may leave the identifier out, since the access token says who they are.
        named: UserId | None = request.user_id
        if _names_user(auth):
            named = await find_login_user(self.accounts, auth, self.server_name)
        self.attempts.check(request.user_id)
        async with self.accounts.reading() as tx:
            user = await users.find_user(tx, request.user_id)
        right = await self.passwords.verify(password, None if user is None else user.password_hash)
        if not right or named != request.user_id:
            self.attempts.note_failure(request.user_id)
            raise StageFailed("M_FORBIDDEN", "Invalid password")


def _names_user(auth: Mapping[str, object]) -> bool:
    return "identifier" in auth or "user" in auth or "medium" in auth


def _next_stages(flows: Flows, completed: Sequence[str]) -> set[str]:
    """The stages that may be done now: flows are done in order."""
    due: set[str] = set()
    for flow in flows:
        left = [stage for stage in flow if stage not in completed]
        due.update(left[:1])
    return due


def _is_done(flows: Flows, completed: Sequence[str]) -> bool:
    return any(all(stage in completed for stage in flow) for flow in flows)
