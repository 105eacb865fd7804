"""Sends other servers what happens here: a queue for each, in PostgreSQL."""
