"""The server settings of the embedded PostgreSQL.

It stands beside the homeserver on one machine, so it is kept small: the figures are for the memory budget of
`tessera serve` (250 MiB), of which shared_buffers is the largest part.
"""

from collections.abc import Mapping
from pathlib import Path

BASE: Mapping[str, str] = {
    "fsync": "on",
    "full_page_writes": "on",
    "synchronous_commit": "on",
    "shared_buffers": "64MB",
    "effective_cache_size": "512MB",
    "work_mem": "4MB",
    "maintenance_work_mem": "32MB",
    "autovacuum_work_mem": "16MB",
    "autovacuum_max_workers": "2",
    "max_connections": "50",
    "max_parallel_workers_per_gather": "0",
    "max_worker_processes": "2",
    "max_wal_senders": "2",
    "max_replication_slots": "0",
    "max_logical_replication_workers": "0",
    "io_method": "sync",  # the default keeps three more processes
    "huge_pages": "off",
    "jit": "off",
    "wal_compression": "off",
    "wal_level": "replica",  # so that pg_basebackup works
    "max_wal_size": "1GB",
    "checkpoint_timeout": "15min",
    "checkpoint_completion_target": "0.9",
    "random_page_cost": "1.1",
    "logging_collector": "off",
    "log_min_messages": "warning",
    "log_checkpoints": "off",
    "log_line_prefix": "%m [%p] ",
    "log_timezone": "UTC",
    "timezone": "UTC",
}

# For tests: a crash of the machine may take the database with it.
FORGETFUL: Mapping[str, str] = {
    "fsync": "off",
    "full_page_writes": "off",
    "synchronous_commit": "off",
    "max_connections": "200",
}


def server_options(overrides: Mapping[str, str], *, port: int, socket_directory: Path | None) -> list[str]:
    """The command line's `-c name=value` pairs; without a socket directory the server listens on the loopback."""
    place = {
        "port": str(port),
        "listen_addresses": "127.0.0.1" if socket_directory is None else "",
        "unix_socket_directories": "" if socket_directory is None else str(socket_directory),
        "unix_socket_permissions": "0700",
    }
    return [word for name, value in {**BASE, **overrides, **place}.items() for word in ("-c", f"{name}={value}")]
