"""Application services that show their own token, and the names that they give.

Spec: Application Service API §Server admin style permissions.
"""

from starlette.requests import Request

from matrixcore.identifiers import InvalidIdentifier, ServerName, UserId, parse_user_id, user_id_of
from services.gateway.dependencies import GatewayDeps
from tessera.appservices import Registration
from tessera.http.authentication import access_token_of
from tessera.http.errors import Exclusive, InvalidUsername, UnknownToken

APPSERVICE_LOGIN = "m.login.application_service"


def require_appservice(gateway: GatewayDeps, request: Request) -> Registration:
    """The service whose token a request has. Raises MissingToken or UnknownToken."""
    service = gateway.authenticator.appservices.find_by_token(access_token_of(request))
    if service is None:
        raise UnknownToken
    return service


def parse_appservice_name(service: Registration, name: str, server_name: ServerName) -> UserId:
    """The user whom a service names, by ID or localpart.

    Raises:
        InvalidUsername: nobody can have this name.
        Exclusive: it is not in the service's namespaces.
    """
    try:
        user_id = parse_user_id(name) if name.startswith("@") else user_id_of(name.lower(), server_name)
    except InvalidIdentifier as error:
        raise InvalidUsername(str(error)) from error
    if not user_id.endswith(f":{server_name}") or not service.has_user(user_id):
        raise Exclusive("The user is not in a namespace of this application service")
    return user_id
