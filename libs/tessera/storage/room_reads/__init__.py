"""Reads of rooms for the gateway and the sync service: events, state, members, relations.

All SQL is keyed by room; the caller picks the shard (`RoomShards.of_room`). Nothing here judges who
may see what (`tessera.room_visibility`).
"""
