"""Files and directories with which no server can start: one clear line, a non-zero exit, no traceback.

Ports, databases and schemas are in test_start_failures.
"""

import subprocess
import sys
from pathlib import Path

import pytest

from tessera.config import generate_config

pytestmark = pytest.mark.timeout(120)


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """A fresh homeserver.yaml on a free port."""
    return generate_config("example.org", tmp_path / "data", port=0)


def refusal(*words: str | Path) -> str:
    """The one line that the command ends with; what it said before about its progress stands on stdout."""
    command = [sys.executable, "-m", "services.cli", *words]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, stdin=subprocess.DEVNULL)
    assert ended.returncode == 1
    assert "Traceback" not in ended.stdout + ended.stderr
    lines = [line for line in ended.stderr.splitlines() if line.startswith("tessera:")]
    assert len(lines) == 1, ended.stderr
    return lines[0]


def replace(config: Path, old: str, new: str) -> None:
    text = config.read_text()
    assert old in text
    config.write_text(text.replace(old, new))


@pytest.mark.parametrize(
    ("content", "reason"),
    [(b"garbage", "expected"), (b"\xff\xfe", "no key file"), (b"ed25519 a_b AAAA", "32 bytes"), (None, "No such file")],
    ids=["garbage", "binary", "short", "missing"],
)
@pytest.mark.parametrize("command", ["serve", "check-config", "migrate"])
def test_a_signing_key_that_cannot_be_used(config: Path, command: str, content: bytes | None, reason: str) -> None:
    key = config.parent / "example.org.signing.key"
    key.unlink() if content is None else key.write_bytes(content)
    said = refusal(command, "--config", config)
    assert str(key) in said
    assert reason in said
    assert not (config.parent / "postgres").exists(), "keys are read before anything is made"


def test_a_key_that_stands_twice_and_one_of_the_wrong_type(config: Path) -> None:
    config.write_text(config.read_text() + "\nenable_registration: true\n")
    assert "enable_registration stands twice" in refusal("check-config", "--config", config)
    replace(config, "\nenable_registration: true\n", "\nmax_image_pixels: many\n")
    assert "max_image_pixels" in refusal("serve", "--config", config)


# A file in the place of a directory stops root as well, whom no permission stops.
def test_a_data_directory_that_cannot_be_made(config: Path, tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("not a directory")
    replace(config, "log_level: info", f"data_dir: '{blocked}'")
    assert str(blocked) in refusal("serve", "--config", config)
    assert blocked.read_text() == "not a directory"


def test_a_media_directory_that_cannot_be_made(config: Path, tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("not a directory")
    replace(config, "media_store_path: media", f"media_store_path: '{blocked}'")
    said = refusal("serve", "--config", config)
    assert "media_store_path" in said
    assert str(blocked) in said


def test_tls_without_and_with_wrong_files(config: Path) -> None:
    replace(config, "tls: false", "tls: true")
    assert "tls_certificate_path" in refusal("serve", "--config", config)
    certificate = config.parent / "cert.pem"
    certificate.write_text("no certificate")
    config.write_text(
        config.read_text() + f"\ntls_certificate_path: {certificate}\ntls_private_key_path: {certificate}\n"
    )
    for command in ("serve", "check-config"):
        assert str(certificate) in refusal(command, "--config", config)
    assert not (config.parent / "postgres").exists()


@pytest.mark.parametrize("place", ["file", "file/below"])
def test_a_configuration_that_cannot_be_written(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").write_text("not a directory")
    refusal("generate-config", "--server-name", "example.org", "--data", tmp_path / place)


def test_a_password_file_that_is_not_there(config: Path, tmp_path: Path) -> None:
    nowhere = tmp_path / "nowhere"
    words = ("-c", config, "-u", "a", "--no-admin", "--password-file", nowhere)
    assert str(nowhere) in refusal("register-user", "http://127.0.0.1:1", *words)
