"""What this server lets its users do. Spec: C-S API §Capabilities negotiation."""

from typing import Any

from starlette.responses import Response

from matrixcore.room_versions import ROOM_VERSIONS
from services.gateway.dependencies import SettingsDep
from services.gateway.routing import CurrentRequester, client_router
from tessera.config import Settings
from tessera.http.replies import json_reply

router = client_router()


@router.get("/capabilities")
async def get_capabilities(requester: CurrentRequester, settings: SettingsDep) -> Response:
    """The capabilities of the server."""
    return json_reply({"capabilities": capabilities_of(settings, is_admin=requester.is_admin)})


def capabilities_of(settings: Settings, *, is_admin: bool = False) -> dict[str, Any]:
    """The capabilities of a user under the settings."""
    disallowed = [
        name
        for name, allowed in (
            ("displayname", settings.enable_set_displayname),
            ("avatar_url", settings.enable_set_avatar_url),
        )
        if not allowed
    ]
    profile_fields: dict[str, Any] = {"enabled": True}
    if disallowed:
        profile_fields["disallowed"] = disallowed
    capabilities = {
        "m.change_password": {"enabled": settings.password_config.enabled},
        "m.room_versions": {
            "default": settings.default_room_version,
            "available": dict.fromkeys(ROOM_VERSIONS, "stable"),
        },
        "m.profile_fields": profile_fields,
        "m.set_displayname": {"enabled": settings.enable_set_displayname},
        "m.set_avatar_url": {"enabled": settings.enable_set_avatar_url},
        "m.3pid_changes": {"enabled": settings.enable_3pid_changes},
        "m.get_login_token": {"enabled": settings.login_via_existing_session.enabled},
        "m.forget_forced_upon_leave": {"enabled": False},
    }
    if is_admin:
        capabilities["m.account_moderation"] = {"lock": True, "suspend": True}
    return capabilities
