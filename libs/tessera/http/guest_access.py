"""What guest accounts may ask for: the specification's list, and reads that go with it.

Spec: C-S API §Guest Access.
"""

# Names of handlers. What is not named here is closed to guests, a new endpoint too.
GUEST_OPERATIONS = frozenset(
    [
        # Reading rooms
        "get_room_state",
        "get_room_state_by_type",
        "get_room_state_with_key",
        "get_event_context",
        "get_one_room_event",
        "get_one_event",
        "get_room_events",
        "get_members_by_room",
        "room_initial_sync",
        "sync",
        "sliding_sync",
        "peek_events",
        "get_relating_events",
        "get_relating_events_with_rel_type",
        "get_relating_events_with_rel_type_and_event_type",
        "get_thread_roots",
        "get_joined_rooms",
        "get_public_rooms",
        "get_room_summary",
        "get_space_hierarchy",
        "query_public_rooms",
        "define_filter",
        "get_filter",
        "get_content_authed",
        "get_content_thumbnail_authed",
        "get_config_authed",
        # Taking part
        "join_room_by_id",
        "join_room_by_id_or_alias",
        "leave",
        "send_message",
        "set_room_state",
        "set_room_state_with_key",
        "send_to_device",
        # Their own account
        "get_user_profile",
        "get_profile_field",
        "set_profile_field",
        "delete_profile_field",
        "get_devices",
        "get_device",
        "update_device",
        "get_token_owner",
        "get_capabilities",
        "get_turn_server",
        "logout",
        "logout_all",
        # Encryption
        "upload_keys",
        "query_keys",
        "claim_keys",
        "get_keys_changes",
    ]
)
