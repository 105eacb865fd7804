"""What accounts under moderation may not ask for.

Spec: C-S API §Account locking, §Account suspension.
"""

# Names of handlers. A locked account has nothing but these.
OPEN_TO_LOCKED = frozenset(["logout", "logout_all"])

# What a suspended account may not: enter rooms, bring others in, speak, change what others see of it. It may read,
# leave, take back its own words, look after its keys, end its sessions and close itself.
CLOSED_TO_SUSPENDED = frozenset(
    [
        "ban",
        "create_content",
        "create_room",
        "delete_3pid_from_account",
        "delete_profile_field",
        "delete_room_alias",
        "invite",
        "join_room_by_id",
        "join_room_by_id_or_alias",
        "kick",
        "knock",
        "send_message",
        "set_presence",
        "set_profile_field",
        "set_room_alias",
        "set_room_state",
        "set_room_state_with_key",
        "set_room_visibility_on_directory",
        "set_typing",
        "unban",
        "upgrade_room",
        "upload_content",
        "upload_content_to_mxc",
    ]
)
