"""What is closed to suspended accounts must be there: a renamed handler would open itself to them unnoticed."""

from itertools import chain

from services.gateway.app import gateway_routers, gateway_routes
from services.media.routes import media_routes
from tessera.http.moderation import CLOSED_TO_SUSPENDED, OPEN_TO_LOCKED


def test_every_operation_that_moderation_speaks_of_is_served() -> None:
    routers = chain.from_iterable(router.routes for router in gateway_routers())
    names = {getattr(route, "name", "") for route in chain(gateway_routes(), routers, media_routes())}
    assert names >= OPEN_TO_LOCKED | CLOSED_TO_SUSPENDED
