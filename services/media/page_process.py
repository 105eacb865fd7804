"""Reads a page in a process of its own, which may take so much time and memory and no more."""

import asyncio
import os
import sys
from contextlib import suppress

import orjson

from services.media import page_reading
from services.media.page_reading import PageSummary

DEADLINE_SECONDS = 6.0  # wall time; the process has less of the CPU
MAX_ANSWER_BYTES = 256 * 1024
KEPT_VARIABLES = ("LD_LIBRARY_PATH", "PATH")  # what Python may need to start; no secret among them


class UnreadablePage(Exception):
    """The page could not be read within the limits."""


async def read_page_apart(content: bytes, charset: str | None, url: str) -> PageSummary:
    """`page_reading.read_page` on a page of a stranger. About 60 ms of CPU.

    Raises:
        UnreadablePage
    """
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-I", page_reading.__file__),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
        env={name: os.environ[name] for name in KEPT_VARIABLES if name in os.environ},
    )
    try:
        async with asyncio.timeout(DEADLINE_SECONDS):
            answer, _ = await process.communicate(orjson.dumps([charset, url]) + b"\n" + content)
    except TimeoutError:
        raise UnreadablePage from None
    finally:
        if process.returncode is None:
            with suppress(ProcessLookupError):
                process.kill()
            await process.wait()
    if process.returncode != 0 or len(answer) > MAX_ANSWER_BYTES:
        raise UnreadablePage
    try:
        fields, image_url = orjson.loads(answer)
    except orjson.JSONDecodeError:  # a lone surrogate, which JSON of Python's writes and orjson refuses
        raise UnreadablePage from None
    return PageSummary(fields, image_url)
