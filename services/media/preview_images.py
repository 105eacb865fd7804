"""The image of a preview, stored as media of this server. Spec: C-S API GET /media/preview_url."""

import asyncio
from pathlib import Path
from typing import Any

from PIL import Image, UnidentifiedImageError

from matrixcore.identifiers import UserId
from services.media.dependencies import MediaDeps
from services.media.disk_store import ObjectTooLarge
from services.media.page_fetching import Fetched
from services.media.response_headers import clean_content_type
from services.media.thumbnails import READ_FORMATS
from tessera.storage import media as media_rows
from tessera.storage import url_previews
from tessera.storage.media import UploadedContent


async def store_image(media: MediaDeps, user_id: UserId, fetched: Fetched, limit_bytes: int) -> dict[str, Any]:
    """Store an image and answer the fields that show it; none if it is too large or no image.

    Raises:
        Unfetchable: it broke off.
    """
    writer = media.store.create(media.ids.token(), limit_bytes)
    try:
        async for chunk in fetched.chunks():
            await writer.write(chunk)
        await writer.finish()
    except ObjectTooLarge:
        await writer.discard()
        return {}
    except BaseException:
        await writer.discard()
        raise
    size = await asyncio.to_thread(measure_image, media.store.path_of(writer.key))
    if size is None:
        await media.store.delete(writer.key)
        return {}
    content_type = clean_content_type(fetched.content_type)
    media_id = media.ids.media_id()
    content = UploadedContent(content_type, None, writer.size_bytes, writer.key, media.limits.authenticated)
    now_ms = media.clock.now_ms()
    async with media.accounts.transaction() as tx:
        await media_rows.add_uploaded(tx, media.server_name, media_id, user_id, now_ms, content)
        await url_previews.add_image(tx, media.server_name, media_id, now_ms)
    return {
        "og:image": f"mxc://{media.server_name}/{media_id}",
        "og:image:type": content_type,
        "og:image:width": size[0],
        "og:image:height": size[1],
        "matrix:image:size": writer.size_bytes,
    }


def measure_image(path: Path) -> tuple[int, int] | None:
    """Width and height by the image's header; None if it is none of the kinds that are shown."""
    try:
        with Image.open(path, formats=READ_FORMATS) as image:
            return image.width, image.height
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        return None
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, EOFError, KeyError, IndexError):
        return None
