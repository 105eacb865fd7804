"""Push notifications: from room.log to the push gateways."""
