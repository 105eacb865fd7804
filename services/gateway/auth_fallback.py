"""Pages on which people pass a stage that their client does not know, and the server's own document.

Spec: C-S API §User-Interactive Authentication API, "Fallback"; §Terms of service at registration.
"""

from typing import Any

from jinja2 import TemplateError
from jinja2.sandbox import SandboxedEnvironment
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route

from services.gateway.dependencies import GatewayDeps, gateway_of
from services.gateway.pages import form_of, page
from services.gateway.policies import CONSENT_PATH
from services.gateway.routing import client_routes
from services.gateway.sso_provider import SSO
from services.gateway.sso_uia import begin_operation
from services.gateway.uia import DUMMY, StageFailed
from services.gateway.uia_stages import RECAPTCHA, REGISTRATION_TOKEN, TERMS
from tessera.config.accounts import UserConsent
from tessera.http.errors import MissingParam, NotFound, Unrecognized

# Stage -> template and title.
_PAGES = {
    DUMMY: ("auth_dummy.html", "One more step"),
    RECAPTCHA: ("auth_recaptcha.html", "One more step"),
    REGISTRATION_TOKEN: ("auth_registration_token.html", "Registration token"),
    TERMS: ("auth_terms.html", "Terms"),
}
# The field of the form, and the key of `auth` that it stands for.
_FIELDS = {RECAPTCHA: ("g-recaptcha-response", "response"), REGISTRATION_TOKEN: ("token", "token")}
_CAPTCHA_SOURCES = "https://www.recaptcha.net https://www.gstatic.com https://www.google.com"


async def get_auth_fallback(request: Request) -> Response:
    """The page of a stage."""
    if request.path_params["stage"] == SSO:
        return await begin_operation(request, _session_of(request))
    return _stage_page(request, _stage_of(request), _session_of(request))


async def post_auth_fallback(request: Request) -> Response:
    """Pass the stage with what the page's form says; if that is not enough, the page again."""
    gateway, stage, session_id = gateway_of(request), _stage_of(request), _session_of(request)
    form = await form_of(request)
    gateway.limits.check("rc_registration", "" if request.client is None else request.client.host)
    auth: dict[str, object] = {}
    if stage in _FIELDS:
        field, key = _FIELDS[stage]
        auth[key] = form.get(field, "")
    try:
        await gateway.uia.pass_stage(session_id, stage, auth)
    except StageFailed as failed:
        return _stage_page(request, stage, session_id, error=failed.error, status=401)
    except NotFound as error:
        return _notice(gateway, "This page has expired", error.message, status=404)
    return page(gateway.ids, "auth_done.html", {"title": "Done", "server_name": gateway.server_name})


async def get_consent(request: Request) -> Response:
    """The server's own document, in the version asked for or the current one."""
    gateway = gateway_of(request)
    consent = gateway.settings.user_consent
    if consent is None:
        raise Unrecognized
    version = request.query_params.get("v", consent.version)
    return HTMLResponse(
        _document(consent, version, gateway.server_name), headers={"Content-Security-Policy": "script-src 'none'"}
    )


routes = [
    *client_routes("/auth/{stage}/fallback/web", get_auth_fallback, methods=["GET"]),
    *client_routes("/auth/{stage}/fallback/web", post_auth_fallback, methods=["POST"]),
    Route(f"/{CONSENT_PATH}", get_consent, methods=["GET"]),
]


def _stage_of(request: Request) -> str:
    stage: str = request.path_params["stage"]
    if stage not in _PAGES or (stage != DUMMY and stage not in gateway_of(request).uia.stages):
        raise Unrecognized("There is no page for this stage")
    return stage


def _session_of(request: Request) -> str:
    session_id = request.query_params.get("session")
    if not session_id:
        raise MissingParam("session is missing")
    return session_id


def _stage_page(
    request: Request, stage: str, session_id: str, *, error: str | None = None, status: int = 200
) -> Response:
    gateway = gateway_of(request)
    template, title = _PAGES[stage]
    values: dict[str, Any] = {"title": title, "server_name": gateway.server_name, "error": error}
    if stage == TERMS:
        values["policies"] = [
            policy.languages.get("en") or next(iter(policy.languages.values()))
            for policy in gateway.policies.required.values()
        ]
    if stage == RECAPTCHA:
        values |= gateway.uia.stages[RECAPTCHA].params(session_id) or {}
        return page(gateway.ids, template, values, status=status, scripts=_CAPTCHA_SOURCES, frames=_CAPTCHA_SOURCES)
    return page(gateway.ids, template, values, status=status)


def _notice(gateway: GatewayDeps, title: str, text: str, *, status: int = 200) -> Response:
    values = {"title": title, "server_name": gateway.server_name, "text": text}
    return page(gateway.ids, "notice.html", values, status=status)


def _document(consent: UserConsent, version: str, server_name: str) -> str:
    """The template `<template_dir>/en/<version>.html`, rendered. Raises NotFound."""
    directory = consent.template_dir / "en"
    # By comparison with what is there, so that no name leads out of the directory.
    path = next((path for path in directory.glob("*.html") if path.stem == version), None)
    if path is None:
        raise NotFound("There is no such version of the document")
    try:
        template = SandboxedEnvironment(autoescape=True).from_string(path.read_text())
        return template.render(
            user="", userhmac="", version=version, has_consented=False, public_version=True, server_name=server_name
        )
    except (OSError, UnicodeDecodeError, TemplateError) as error:
        raise NotFound("The document cannot be shown") from error
