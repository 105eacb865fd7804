"""Bounds on logins and on wrong passwords. Spec: C-S API §Login, 429; the settings rc_login.*."""

from matrixcore.identifiers import UserId
from tessera.http.limits import RateLimits


class LoginAttempts:
    """The three limits of rc_login."""

    def __init__(self, limits: RateLimits) -> None:
        self._limits = limits

    def check_address(self, address: str) -> None:
        """Note a login from an address. Raises LimitExceeded."""
        self._limits.check("rc_login.address", address)

    def check_account(self, user_id: UserId) -> None:
        """Note a login to an account. Raises LimitExceeded."""
        self._limits.check("rc_login.account", user_id)

    def check(self, user_id: UserId) -> None:
        """Raise LimitExceeded if too many wrong passwords were given for the account lately."""
        self._limits.require_capacity("rc_login.failed_attempts", user_id)

    def note_failure(self, user_id: UserId) -> None:
        """A wrong password was given."""
        self._limits.note("rc_login.failed_attempts", user_id)
