"""Synapse's keys that are no settings here: some do no harm, the others must not be passed over in silence.

What is refused would change what users or peers may do; who set it relies on it. Switched off, it changes nothing.
"""

from collections.abc import Mapping
from typing import Any

from tessera.config.errors import Problem

# Tuning of Synapse's own machinery, or secrets of features that are refused below.
UNUSED = frozenset(
    [
        "background_updates",
        "bcrypt_rounds",
        "cache_autotuning",
        "caches",
        "cleanup_extremities_with_dummy_events",
        "daemonize",
        "disable_msisdn_registration",
        "dummy_events_threshold",
        "dynamic_thumbnails",
        "enable_3pid_lookup",
        "enable_metrics",
        "event_cache_size",
        "experimental_features",
        "federation",
        "federation_metrics_domains",
        "federation_rr_transactions_per_room_per_second",
        "filter_timeline_limit",
        "form_secret",
        "form_secret_path",
        "gc_min_interval",
        "gc_thresholds",
        "instance_map",
        "invite_client_location",
        "macaroon_secret_key",
        "macaroon_secret_key_path",
        "manhole",
        "manhole_settings",
        "mau_appservice_trial_days",
        "mau_limit_alerting",
        "mau_stats_only",
        "mau_trial_days",
        "max_mau_value",
        "media_instance_running_background_jobs",
        "metrics_flags",
        "no_redirect_stdio",
        "oembed",
        "opentracing",
        "print_pidfile",
        "redis",
        "replication_torture_level",
        "run_background_tasks_on",
        "sentry",
        "server_context",
        "soft_file_limit",
        "stats",
        "stream_writers",
        "suppress_key_server_warning",
        "sync_response_cache_duration",
        "task_scheduler",
        "templates",
        "thumbnail_sizes",
        "track_memory_usage",
        "ui_auth",
        "use_frozen_dicts",
        "user_agent_suffix",
        "validation_token_lifetime",
        "worker_replication_secret",
        "worker_replication_secret_path",
    ]
)

UNSUPPORTED = frozenset(
    [
        "account_validity",
        "allow_underscore_prefixed_localpart",
        "allowed_avatar_mimetypes",
        "auto_accept_invites",
        "auto_join_mxid_localpart",
        "auto_join_rooms",
        "backup_media_store_path",
        "block_non_admin_invites",
        "cas_config",
        "databases",
        "data_stores",
        "default_power_level_content_override",
        "dont_notify_new_devices_for",
        "enable_ephemeral_messages",
        "encryption_enabled_by_default_for_room_type",
        "exclude_rooms_from_presence",
        "exclude_rooms_from_sync",
        "federation_whitelist_endpoint_enabled",
        "forget_rooms_on_leave",
        "hs_disabled",
        "http_proxy",
        "invite_3pid_guest",
        "jwt_config",
        "key_server_signing_keys_path",
        "ldap_config",
        "limit_remote_rooms",
        "limit_usage_by_mau",
        "matrix_authentication_service",
        "mau_limits_reserved_threepids",
        "max_avatar_size",
        "media_retention",
        "media_storage_providers",
        "media_upload_limits",
        "modules",
        "oidc_config",
        "outbound_federation_restricted_to",
        "password_providers",
        "presence_router",
        "prevent_media_downloads_from",
        "redaction_allowed_period",
        "restrict_public_rooms_to_local_users",
        "retention",
        "room_prejoin_state",
        "saml2_config",
        "spam_checker",
        "third_party_event_rules",
        "track_appservice_user_ips",
        "track_puppeted_user_ips",
        "use_account_validity_in_account_status",
        "use_appservice_legacy_authorization",
        "user_types",
        "worker_app",
    ]
)

# Only these values, since the behaviour cannot be changed.
FIXED: Mapping[str, tuple[Any, ...]] = {
    "allow_device_name_lookup_over_federation": (False,),
    "allow_per_room_profiles": (True,),
    "allow_profile_lookup_over_federation": (True,),
    "auto_join_rooms_for_guests": (True, False),
    "autocreate_auto_join_rooms": (True, False),
    "enable_local_media_storage": (True,),
    "enable_media_repo": (True,),
    "enable_room_list_search": (True,),
    "enable_search": (True,),
    "include_profile_data_on_invite": (True,),
    "require_membership_for_aliases": (True,),
}

KNOWN = UNUSED | UNSUPPORTED | FIXED.keys()


def sort_out(data: Mapping[str, Any]) -> tuple[dict[str, Any], list[str], list[Problem]]:
    """Take Synapse's other keys out of a file: (what is left, keys without effect, keys that are refused)."""
    left: dict[str, Any] = {}
    unused: list[str] = []
    problems: list[Problem] = []
    for key, value in data.items():
        if key not in KNOWN:
            left[key] = value
        elif key in UNUSED:
            unused.append(key)
        elif key in FIXED:
            if value not in FIXED[key]:
                problems.append(Problem(key, f"cannot be changed here; remove it, or leave it at {FIXED[key][0]!r}"))
        elif not _is_off(value):
            problems.append(Problem(key, "is not supported; remove it, or switch it off"))
    return left, unused, problems


def _is_off(value: object) -> bool:
    if isinstance(value, Mapping):
        return value.get("enabled") is False or all(_is_off(item) for item in value.values())
    return value in (None, False, "", [], (), "off")
