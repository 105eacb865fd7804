"""Which thumbnail answers a request, and how it is made.

Pure apart from CPU and memory: `make_thumbnail` takes a path and gives bytes, and runs on a thread.

Spec: C-S API §Thumbnails.
"""

from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Literal

from PIL import Image, ImageOps, UnidentifiedImageError

Method = Literal["crop", "scale"]

# What the specification recommends, and larger steps, so that a request above them is not answered by less.
SCALE_STEPS = ((320, 240), (640, 480), (800, 600), (1280, 960), (1920, 1440))
CROP_STEPS = (32, 96, 160, 320, 640)
MAX_DIMENSION = 4096

READ_FORMATS = ("PNG", "JPEG", "GIF", "WEBP", "BMP", "AVIF")
# Formats whose originals may be served as they are where the image is smaller than the request.
SERVED_AS_IS = {"PNG": "image/png", "JPEG": "image/jpeg", "GIF": "image/gif", "WEBP": "image/webp"}
MAX_FRAMES = 200


class NoThumbnail(Exception):
    """The content is no image that can be read."""


class ImageTooLarge(Exception):
    """The image has more pixels than the server is willing to decode."""


@dataclass(frozen=True, slots=True)
class ThumbnailRequest:
    """What a client asks for, in pixels."""

    width: int
    height: int
    method: Method
    animated: bool


@dataclass(frozen=True, slots=True)
class ThumbnailSize:
    """What is made: a box to fit into (scale) or to fill (crop). Only `kept` sizes are stored, so a source has few."""

    width: int
    height: int
    method: Method
    animated: bool
    kept: bool

    @property
    def variant(self) -> str:
        """The name under which the thumbnail is stored."""
        return f"{self.width}x{self.height}-{self.method}{'-animated' if self.animated else ''}"


@dataclass(frozen=True, slots=True)
class Thumbnail:
    """Image bytes with their type; `content` None means that the original itself is the answer."""

    content_type: str
    content: bytes | None


def choose_size(request: ThumbnailRequest) -> ThumbnailSize:
    """The size to make: the next step that is not smaller than the request.

    A request off the steps (a crop that is no square, or anything above the largest step) is made to measure, and not
    kept.
    """
    if request.method == "scale":
        for width, height in SCALE_STEPS:
            if width >= request.width and height >= request.height:
                return ThumbnailSize(width, height, "scale", request.animated, kept=True)
    elif request.width == request.height:
        for side in CROP_STEPS:
            if side >= request.width:
                return ThumbnailSize(side, side, "crop", request.animated, kept=True)
    width, height = min(request.width, MAX_DIMENSION), min(request.height, MAX_DIMENSION)
    return ThumbnailSize(width, height, request.method, request.animated, kept=False)


def content_type_of(content: bytes) -> str:
    """The type of a thumbnail that make_thumbnail has made, by its first bytes."""
    if content.startswith(b"\x89PNG"):
        return "image/png"
    return "image/webp" if content.startswith(b"RIFF") else "image/jpeg"


def make_thumbnail(source: Path, size: ThumbnailSize, max_pixels: int) -> Thumbnail:
    """Read an image and make it smaller; it is never made larger.

    Args:
        max_pixels: of one frame; the header tells them before anything is decoded.

    Raises:
        NoThumbnail: not an image, or a damaged one.
        ImageTooLarge: too many pixels.
    """
    try:
        with Image.open(source, formats=READ_FORMATS) as image:
            if image.width * image.height > max_pixels:
                raise ImageTooLarge
            return _make(image, size, max_pixels)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise ImageTooLarge from None
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, EOFError, KeyError, IndexError):
        # What Pillow's decoders raise for damaged files.
        raise NoThumbnail from None


def _make(image: Image.Image, size: ThumbnailSize, max_pixels: int) -> Thumbnail:
    frames = getattr(image, "n_frames", 1)
    animate = size.animated and 1 < frames <= MAX_FRAMES and frames * image.width * image.height <= 4 * max_pixels
    turned = image.getexif().get(0x0112, 1) in (5, 6, 7, 8)
    width, height = (image.height, image.width) if turned else (image.width, image.height)
    target = _target(width, height, size)
    if target == (width, height) and image.format in SERVED_AS_IS and (frames == 1 or animate):
        return Thumbnail(SERVED_AS_IS[image.format], None)
    if animate:
        return Thumbnail("image/webp", _animate(image, frames, target, size.method))
    if image.format == "JPEG":
        # The decoder itself reduces by a power of two: less memory, several times faster.
        image.draft("RGB", (target[1], target[0]) if turned else target)
    still = ImageOps.exif_transpose(image)
    return _encode(_resize(still, target, size.method))


def _target(width: int, height: int, size: ThumbnailSize) -> tuple[int, int]:
    """The dimensions of the thumbnail of an image of width x height."""
    if size.method == "crop":
        return min(width, size.width), min(height, size.height)
    if width <= size.width and height <= size.height:
        return width, height
    # Integers, so that equal aspects give equal sizes.
    if size.width * height < size.height * width:
        return size.width, max(1, size.width * height // width)
    return max(1, size.height * width // height), size.height


def _resize(image: Image.Image, target: tuple[int, int], method: Method) -> Image.Image:
    has_alpha = image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info
    image = image.convert("RGBA" if has_alpha else "RGB")
    if method == "crop":
        return ImageOps.fit(image, target, Image.Resampling.LANCZOS)
    return image if image.size == target else image.resize(target, Image.Resampling.LANCZOS, reducing_gap=2.0)


def _encode(image: Image.Image) -> Thumbnail:
    out = BytesIO()
    if image.mode == "RGBA":
        image.save(out, "PNG")
        return Thumbnail("image/png", out.getvalue())
    image.save(out, "JPEG", quality=80)
    return Thumbnail("image/jpeg", out.getvalue())


def _animate(image: Image.Image, frames: int, target: tuple[int, int], method: Method) -> bytes:
    resized: list[Image.Image] = []
    durations: list[int] = []
    for number in range(frames):
        image.seek(number)
        resized.append(_resize(image, target, method).convert("RGBA"))
        durations.append(int(image.info.get("duration", 100)) or 100)
    out = BytesIO()
    resized[0].save(
        out, "WEBP", save_all=True, append_images=resized[1:], duration=durations, loop=int(image.info.get("loop", 0))
    )
    return out.getvalue()
