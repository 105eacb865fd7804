"""Sizes and methods of thumbnails. Spec: C-S API §Thumbnails."""

from io import BytesIO
from pathlib import Path

import pytest
from PIL import Image

from services.media.thumbnails import (
    ImageTooLarge,
    NoThumbnail,
    ThumbnailRequest,
    ThumbnailSize,
    choose_size,
    make_thumbnail,
)

MAX_PIXELS = 4_000_000


def save(path: Path, size: tuple[int, int], mode: str = "RGB", kind: str = "JPEG", **options: object) -> Path:
    Image.new(mode, size, "red").save(path, kind, **options)
    return path


def make(path: Path, width: int, height: int, method: str = "scale", *, animated: bool = False) -> Image.Image | None:
    thumbnail = make_thumbnail(
        path,
        choose_size(ThumbnailRequest(width, height, method, animated)),
        MAX_PIXELS,  # type: ignore[arg-type]
    )
    if thumbnail.content is None:
        return None
    image = Image.open(BytesIO(thumbnail.content))
    assert Image.MIME[image.format or ""] == thumbnail.content_type
    return image


@pytest.mark.parametrize(
    ("width", "height", "method", "size"),
    [
        (320, 240, "scale", ThumbnailSize(320, 240, "scale", animated=False, kept=True)),
        (321, 1, "scale", ThumbnailSize(640, 480, "scale", animated=False, kept=True)),
        (1920, 1441, "scale", ThumbnailSize(1920, 1441, "scale", animated=False, kept=False)),
        (33, 33, "crop", ThumbnailSize(96, 96, "crop", animated=False, kept=True)),
        (96, 40, "crop", ThumbnailSize(96, 40, "crop", animated=False, kept=False)),
        (9999, 9999, "crop", ThumbnailSize(4096, 4096, "crop", animated=False, kept=False)),
    ],
)
def test_the_next_step_up_is_made(width: int, height: int, method: str, size: ThumbnailSize) -> None:
    assert choose_size(ThumbnailRequest(width, height, method, animated=False)) == size  # type: ignore[arg-type]


def test_scale_keeps_the_aspect_and_crop_has_the_one_asked_for(tmp_path: Path) -> None:
    path = save(tmp_path / "a", (1600, 800))
    scaled, cropped = make(path, 640, 480), make(path, 96, 96, "crop")
    assert scaled is not None
    assert scaled.size == (640, 320)
    assert cropped is not None
    assert cropped.size == (96, 96)


def test_a_small_image_is_its_own_thumbnail(tmp_path: Path) -> None:
    assert make(save(tmp_path / "a", (100, 100)), 320, 240) is None
    assert make(save(tmp_path / "b", (32, 32), kind="PNG"), 32, 32, "crop") is None


def test_a_format_that_no_thumbnail_may_have_is_encoded_anew(tmp_path: Path) -> None:
    image = make(save(tmp_path / "a", (100, 100), kind="BMP"), 320, 240)
    assert image is not None
    assert (image.format, image.size) == ("JPEG", (100, 100))


def test_transparency_stays(tmp_path: Path) -> None:
    image = make(save(tmp_path / "a", (500, 500), "RGBA", "PNG"), 96, 96, "crop")
    assert image is not None
    assert (image.format, image.mode) == ("PNG", "RGBA")


def test_the_camera_s_orientation_is_applied(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    image = make(save(tmp_path / "a", (1600, 800), exif=exif), 640, 480)
    assert image is not None
    assert image.size == (240, 480)


def test_animation_only_where_it_is_asked_for(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (400, 400), colour) for colour in ("red", "blue", "green")]
    path = tmp_path / "a.gif"
    frames[0].save(path, "GIF", save_all=True, append_images=frames[1:], duration=50)
    still, moving = make(path, 96, 96, "crop"), make(path, 96, 96, "crop", animated=True)
    assert still is not None
    assert getattr(still, "n_frames", 1) == 1
    assert moving is not None
    assert (moving.format, getattr(moving, "n_frames", 1), moving.size) == ("WEBP", 3, (96, 96))
    # Smaller than the request: the original may answer only if it may move.
    assert make(path, 640, 480) is not None
    assert make(path, 640, 480, animated=True) is None


def test_what_is_too_large_is_refused_before_it_is_decoded(tmp_path: Path) -> None:
    with pytest.raises(ImageTooLarge):
        make(save(tmp_path / "a", (4000, 1001), "1", "PNG"), 96, 96)
    with pytest.raises(ImageTooLarge):
        make(save(tmp_path / "b", (16_000, 16_000), "1", "PNG"), 96, 96)


@pytest.mark.parametrize("content", [b"", b"no image", b"\x89PNG\r\n\x1a\n", b"GIF89a\x01", b"<svg/>"])
def test_what_is_no_image_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a").write_bytes(content)
    with pytest.raises(NoThumbnail):
        make(tmp_path / "a", 96, 96)


def test_a_damaged_image_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "a", (400, 400), kind="PNG")
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(NoThumbnail):
        make(path, 96, 96)
