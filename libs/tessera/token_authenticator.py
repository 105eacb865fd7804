"""Access tokens of the account store, for every service that asks who makes a request.

Spec: C-S API §Using access tokens, §Refreshing access tokens.
"""

from collections.abc import Mapping, Sequence

from starlette.requests import Request

from matrixcore.identifiers import UserId
from tessera.appservices import AppServices, Registration
from tessera.clock import Clock
from tessera.fanout import Fanout, SessionEnd, Subscriber, Subscription
from tessera.http.authentication import Requester, access_token_of
from tessera.http.errors import Forbidden, MatrixError
from tessera.http.requester_cache import RequesterCache
from tessera.last_seen import LastSeenRecorder
from tessera.storage import access_tokens, devices, users
from tessera.storage.appservice_users import set_appservice
from tessera.storage.database import Database


class TokenAuthenticator:
    """`tessera.http.authentication.Authenticator` over the account store: one query for tokens not in the cache.

    Sessions that end in other processes are heard of over the fan-out; without it a token lives on for the few
    seconds of the cache.
    """

    def __init__(
        self,
        accounts: Database,
        clock: Clock,
        last_seen: LastSeenRecorder,
        appservices: AppServices | None = None,
    ) -> None:
        self.appservices = appservices or AppServices()
        self._accounts = accounts
        self._clock = clock
        self._last_seen = last_seen
        self._cache = RequesterCache(clock, self._find)
        self._subscription: Subscription | None = None

    async def start(self, fanout: Fanout) -> None:
        """Hear of sessions that end elsewhere."""
        self._subscription = await fanout.subscribe(Subscriber(on_session_end=self._on_session_end))

    async def stop(self) -> None:
        """Hear nothing more."""
        if self._subscription is not None:
            await self._subscription.close()

    async def authenticate(self, request: Request) -> Requester:
        """The requester of a request, and a note of its device's address.

        Raises:
            MissingToken, UnknownToken
            Forbidden, MatrixError: an application service says that it is somebody whom it cannot be.
        """
        token = access_token_of(request)
        service = self.appservices.find_by_token(token) if self.appservices.registrations else None
        if service is not None:
            return await self._asserted(service, request.query_params)
        requester = await self._cache.get(token)
        if requester.device_id:
            client = request.scope.get("client")
            self._last_seen.note(requester.user_id, requester.device_id, None if client is None else client[0])
        return requester

    async def authenticate_token(self, token: str) -> Requester:
        """The requester of a token that came some other way. Raises UnknownToken."""
        return await self._cache.get(token)

    async def _asserted(self, service: Registration, query: Mapping[str, str]) -> Requester:
        """Whom an application service acts as. Spec: Application Service API §Identity assertion."""
        user_id, device_id = UserId(query.get("user_id", service.sender)), query.get("device_id", "")
        if not service.has_user(user_id):
            raise Forbidden("Application service cannot masquerade as this user.")
        async with self._accounts.transaction() as tx:
            if user_id == service.sender:
                # Services need not register themselves.
                name, now_ms = user_id[1:].partition(":")[0], self._clock.now_ms()
                if await users.add_user(tx, user_id, password_hash=None, displayname=name, now_ms=now_ms):
                    await set_appservice(tx, user_id, service.service_id)
            user = await users.find_user(tx, user_id)
            device = await devices.find_device(tx, user_id, device_id) if device_id else None
        if user is None or user.deactivated:
            raise Forbidden("Application service has not registered this user")
        if device_id and device is None:
            raise MatrixError("The user has no such device", errcode="M_UNKNOWN_DEVICE", status=400)
        return Requester(
            user_id,
            device_id,
            appservice_id=service.service_id,
            is_locked=user.locked,
            is_suspended=user.suspended,
        )

    def forget_device(self, user_id: UserId, device_id: str) -> None:
        """A session ended in this process: its tokens are dead at once."""
        self._cache.forget_device(user_id, device_id)

    def forget_user(self, user_id: UserId) -> None:
        """All sessions of a user ended in this process."""
        self._cache.forget_user(user_id)

    def _on_session_end(self, end: SessionEnd) -> None:
        if end.device_id is None:
            self._cache.forget_user(end.user_id)
        else:
            self._cache.forget_device(end.user_id, end.device_id)

    async def _find(self, tokens: Sequence[str]) -> dict[str, Requester]:
        async with self._accounts.reading() as tx:
            found = await access_tokens.find_tokens(tx, tokens)
            refreshed = [one for one in found.values() if one.supersedes is not None]
            for one in refreshed:  # hardly ever more than one: each exchange of a refresh token comes here once
                assert one.supersedes is not None
                # The first use of a refreshed token: its client has it, so the old ones are needed no more.
                await access_tokens.revoke_superseded(tx, one.user_id, one.device_id, one.supersedes)
        for one in refreshed:
            self._cache.forget_device(one.user_id, one.device_id)
        return {
            token: Requester(
                one.user_id,
                one.device_id,
                one.is_guest,
                one.is_admin,
                one.expires_ts,
                is_locked=one.locked,
                is_suspended=one.suspended,
            )
            for token, one in found.items()
        }
