"""What is open to guests must be there: a renamed handler would close itself to them unnoticed."""

from itertools import chain

from services.gateway.app import gateway_routers, gateway_routes
from services.media.routes import media_routes
from services.sync.routes import SyncRoutes
from services.sync.sliding.routes import SlidingRoutes
from tessera.http.guest_access import GUEST_OPERATIONS


def test_every_operation_that_guests_have_is_served() -> None:
    routers = chain.from_iterable(router.routes for router in gateway_routers())
    names = {getattr(route, "name", "") for route in chain(gateway_routes(), routers, media_routes())}
    names |= {name for name in vars(SyncRoutes) if not name.startswith("_")}
    names |= {route.name for route in SlidingRoutes.__new__(SlidingRoutes).routes}
    assert names >= GUEST_OPERATIONS
