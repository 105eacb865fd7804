"""`tessera rotate-signing-key`: sign with a new key from the next start on."""

from typing import Annotated

import typer

from matrixcore.identifiers import ServerName
from matrixcore.signing import KEY_BYTES, SigningKey
from services.command_line import DEFAULT_CONFIG, ConfigOption, console, fail, read_config, run_to_end, set_up_logging
from tessera.clock import SystemClock
from tessera.config import load_signing_keys
from tessera.config.values import parse_duration
from tessera.ids import IdSource
from tessera.service import CannotStart


def rotate_command(
    config: ConfigOption = DEFAULT_CONFIG,
    grace: Annotated[str, typer.Option(help="how long the old key may still sign: restart within that time")] = "1h",
) -> None:
    """Make a new signing key; the old one stays published among old_verify_keys.

    Every process that signs (all of a cluster's) has to be started anew within the grace: what the old key signs
    later, nobody believes.
    """
    settings = read_config(config)
    set_up_logging(settings)
    try:
        grace_ms = parse_duration(grace)
    except ValueError as error:
        fail(f"--grace {error}")
    if settings.signing_key is not None:
        fail("the key stands in the configuration (signing_key): give it a file (signing_key_path) to rotate it")

    async def run() -> None:
        from services.stores import running_stores
        from tessera.federation.key_rotation import rotate_signing_key

        ids, now_ms = IdSource(), SystemClock().now_ms()
        old = load_signing_keys(settings)
        new = SigningKey(version=f"a_{ids.letters(6)}", seed=ids.random_bytes(KEY_BYTES))
        name = ServerName(settings.server_name)
        async with running_stores(settings, "rotate-signing-key") as stores:
            try:
                await rotate_signing_key(
                    stores.accounts, name, settings.signing_key_file, old=old, new=new, retired_at_ms=now_ms + grace_ms
                )
            except OSError as error:
                raise CannotStart(f"{settings.signing_key_file} cannot be replaced: {error.strerror}") from error
        console.print(f"{settings.signing_key_file} now holds {new.key_id}")
        console.print(f"restart every process within {grace}; until then they sign with {old[0].key_id}")

    run_to_end(run)
