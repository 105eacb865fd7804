"""`oidc_providers` and `sso` as Synapse's files have them."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from tessera.config import ConfigError, Settings
from tessera.config.reading import read_settings
from tessera.config.single_sign_on import compile_template

KEYCLOAK: dict[str, Any] = {
    "idp_id": "keycloak",
    "idp_name": "Example staff",
    "issuer": "https://id.example.org/realms/staff",
    "client_id": "matrix",
    "client_secret": "hush",
    "scopes": ["openid", "profile"],
    "user_mapping_provider": {
        "config": {"localpart_template": "{{ user.preferred_username }}", "display_name_template": "{{ user.name }}"}
    },
    "backchannel_logout_enabled": False,
}


def read(folder: Path, *providers: dict[str, Any], **keys: Any) -> Settings:
    file = folder / "homeserver.yaml"
    file.write_text(yaml.safe_dump({"server_name": "example.org", "oidc_providers": list(providers), **keys}))
    return read_settings(file, {})


def problems(folder: Path, *providers: dict[str, Any], **keys: Any) -> dict[str, str]:
    with pytest.raises(ConfigError) as refused:
        read(folder, *providers, **keys)
    return {problem.path: problem.reason for problem in refused.value.problems}


def test_a_provider_of_synapses(tmp_path: Path) -> None:
    (provider,) = read(tmp_path, KEYCLOAK).oidc_providers
    assert (provider.auth_provider, provider.pkce_method, provider.uses_id_tokens) == ("oidc-keycloak", "auto", True)
    assert not provider.asks_userinfo
    nameless = {key: value for key, value in KEYCLOAK.items() if key != "idp_id"}
    assert read(tmp_path, nameless).oidc_providers[0].auth_provider == "oidc"


def test_a_secret_may_stand_in_a_file(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("from a file\n")
    given = {key: value for key, value in KEYCLOAK.items() if key != "client_secret"}
    secret = read(tmp_path, {**given, "client_secret_path": "secret"}).oidc_providers[0].client_secret
    assert secret is not None
    assert secret.get_secret_value() == "from a file"
    assert (
        "cannot be read"
        in problems(tmp_path, {**given, "client_secret_path": "none"})["oidc_providers.0.client_secret_path"]
    )
    assert "client_secret (or client_secret_path)" in problems(tmp_path, given)["oidc_providers.0"]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"client_secret_jwt_key": {"key": "x"}}, "client_secret_jwt_key is not supported"),
        ({"backchannel_logout_enabled": True}, "backchannel_logout_enabled is not supported"),
        ({"issuer": "http://id.example.org"}, "issuer must be an https: URL"),
        ({"discover": False}, "authorization_endpoint is required"),
        ({"user_mapping_provider": {"config": {}}}, "localpart_template is required"),
    ],
)
def test_what_is_not_supported_or_missing_is_named(tmp_path: Path, change: dict[str, Any], named: str) -> None:
    assert named in problems(tmp_path, {**KEYCLOAK, **change})["oidc_providers.0"]


@pytest.mark.parametrize(
    ("config", "named"),
    [
        ({"confirm_localpart": True}, "confirm_localpart is not supported"),
        ({"picture_claim": "picture"}, "picture_claim is not supported"),
        ({"localpart_template": "{{ user."}, "is no Jinja2 template"),
    ],
)
def test_mappings_that_cannot_be(tmp_path: Path, config: dict[str, Any], named: str) -> None:
    mapping = {**KEYCLOAK["user_mapping_provider"]["config"], **config}
    assert named in "\n".join(problems(tmp_path, {**KEYCLOAK, "user_mapping_provider": {"config": mapping}}).values())


def test_other_code_symmetric_signatures_and_unknown_keys_are_refused(tmp_path: Path) -> None:
    found = problems(
        tmp_path,
        {
            **KEYCLOAK,
            "user_mapping_provider": {**KEYCLOAK["user_mapping_provider"], "module": "ours.Mapper"},
            "id_token_signing_alg_values_supported": ["HS256"],
            "idp_nam": "x",
        },
    )
    assert found["oidc_providers.0.idp_nam"] == "unknown key; did you mean idp_name?"
    assert {"oidc_providers.0.user_mapping_provider.module"} < found.keys()
    assert any("signing_alg" in path for path in found)


def test_two_providers_of_one_id(tmp_path: Path) -> None:
    assert "the same idp_id" in problems(tmp_path, KEYCLOAK, KEYCLOAK)["oidc_providers"]


def test_what_holds_for_all_providers(tmp_path: Path) -> None:
    settings = read(tmp_path, sso={"client_whitelist": ["https://chat.example.org/"], "template_dir": None})
    assert settings.sso.client_whitelist == ("https://chat.example.org/",)
    assert "template_dir is not supported" in problems(tmp_path, sso={"template_dir": "pages"})["sso"]
    assert read(tmp_path, sso=None, oidc_providers=None).oidc_providers == ()


def test_templates_are_sandboxed_and_say_nothing_for_nothing() -> None:
    template = compile_template("{{ user.email | localpart_from_email }}{{ user.none }}{{ user.missing }}")
    assert template.render(user={"email": "ann.lee@example.org", "none": None}) == "ann.lee"
    with pytest.raises(Exception, match="unsafe"):
        compile_template("{{ user.__class__.__mro__ }}").render(user={})
