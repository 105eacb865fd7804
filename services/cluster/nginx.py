"""nginx as the proxy in front of a small cluster, where it is installed."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from urllib.parse import urlsplit

from services.cluster.plan import PlannedProcess, routed_prefixes
from tessera.config import Listener, Settings
from tessera.config.services import ServiceName

_KEPT_CONNECTIONS = 64
_MAX_HEAD = "256k"


def nginx_config(settings: Settings, listeners: Sequence[Listener], processes: Sequence[PlannedProcess]) -> str:
    """The configuration file of an nginx that listens where the homeserver would.

    Polls of one device stay with one sync process, and idempotent requests go on to another process when one does not
    take them (nginx counts PUT and DELETE among these).
    """
    by_service: dict[ServiceName, list[PlannedProcess]] = {}
    for process in processes:
        by_service.setdefault(process.service, []).append(process)
    upstreams = "\n".join(
        _upstream(service, by_service[service])
        for service in ("gateway", "sync", "media", "federation-in")
        if service in by_service
    )
    servers = "\n".join(_server(settings, listener, by_service) for listener in listeners)
    return f"""\
daemon off;
worker_processes 2;
pid nginx.pid;
error_log stderr warn;
events {{ worker_connections 4096; }}
http {{
  access_log off;
  client_body_temp_path body;
  proxy_temp_path proxy;
  fastcgi_temp_path fastcgi;
  uwsgi_temp_path uwsgi;
  scgi_temp_path scgi;
  large_client_header_buffers 8 {_MAX_HEAD};
  client_max_body_size {settings.max_upload_size};
  proxy_http_version 1.1;
  proxy_set_header Connection "";
  proxy_set_header Host $http_host;
  proxy_set_header X-Forwarded-For $remote_addr;
  proxy_set_header X-Forwarded-Proto $scheme;
  proxy_buffer_size {_MAX_HEAD};
  proxy_buffers 8 {_MAX_HEAD};
  proxy_busy_buffers_size 512k;
  proxy_connect_timeout 2s;
  proxy_read_timeout 90s;
  proxy_next_upstream error timeout;
  proxy_next_upstream_tries 4;
  proxy_next_upstream_timeout 10s;
  map $http_authorization $device {{ default $http_authorization; "" $arg_access_token; }}
{upstreams}
{servers}
}}
"""


def _upstream(service: str, processes: Sequence[PlannedProcess]) -> str:
    # A device's polls stay with one process as long as that takes them.
    balance = "hash $device consistent;" if service == "sync" else "least_conn;"
    servers = " ".join(f"server {urlsplit(process.url).netloc} max_fails=1 fail_timeout=1s;" for process in processes)
    return f"  upstream {service} {{ {balance} {servers} keepalive {_KEPT_CONNECTIONS}; }}"


def _server(settings: Settings, listener: Listener, by_service: Mapping[ServiceName, object]) -> str:
    tls = " ssl" if listener.tls else ""
    places = [
        f"    listen {f'[{address}]' if ':' in address else address}:{listener.port}{tls};"
        for address in listener.bind_addresses
    ]
    if listener.path is not None:
        places = [f"    listen unix:{listener.path};"]
    if listener.tls:
        places += [
            f"    ssl_certificate {settings.tls_certificate_path};",
            f"    ssl_certificate_key {settings.tls_private_key_path};",
        ]
    # Uploads are passed on as they come; other bodies are kept, so that they can go to another process.
    locations = [
        f"    location ~ {pattern} {{ {'proxy_request_buffering off; ' if service == 'media' else ''}"
        f"proxy_pass http://{service}; }}"
        for pattern, service in routed_prefixes()
        if service in by_service
    ]
    locations.append("    location / { proxy_pass http://gateway; }")
    return "\n".join(["  server {", *places, *locations, "  }"])


def nginx_command(binary: str, folder: Path, config: str) -> tuple[str, ...]:
    """Write the configuration and the folders that nginx wants; how to start it."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "nginx.conf"
    file.write_text(config)
    return (binary, "-p", str(folder), "-c", str(file), "-e", "stderr")
