"""The versions of the specification. Spec: C-S API §API Versions."""

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from tessera.http.replies import json_reply

# r0.6.1 stands for all that came before the versions were numbered together.
VERSIONS = (
    *("r0.0.1", "r0.1.0", "r0.2.0", "r0.3.0", "r0.4.0", "r0.5.0", "r0.6.0", "r0.6.1"),
    *(f"v1.{minor}" for minor in range(1, 20)),
)

# What is not in the specification, or what clients still ask for by the name it had before.
UNSTABLE_FEATURES = {
    "com.beeper.msc4169": True,
    "fi.mau.msc2659.stable": True,
    "org.matrix.e2e_cross_signing": True,
    "org.matrix.msc2285.stable": True,
    "org.matrix.msc3391": True,
    "org.matrix.msc3440.stable": True,
    "org.matrix.msc3771": True,
    "org.matrix.msc3773": True,
    "org.matrix.msc3814": True,
    "org.matrix.msc3827.stable": True,
    "org.matrix.msc3881": True,
    "org.matrix.msc3912": True,
    "org.matrix.msc3981": True,
    "org.matrix.msc4108": True,
    "org.matrix.msc4140": True,
    "org.matrix.msc4143": True,
    "org.matrix.simplified_msc3575": True,
    "org.matrix.msc4380.stable": True,
    "uk.half-shot.msc2666.query_mutual_rooms": True,
    "uk.half-shot.msc2666.query_mutual_rooms.stable": True,
    "uk.tcpip.msc4133.stable": True,
}


async def get_versions(_request: Request) -> Response:
    """What clients may use here."""
    return json_reply({"versions": VERSIONS, "unstable_features": UNSTABLE_FEATURES})


routes = [Route("/_matrix/client/versions", get_versions, methods=["GET"])]
