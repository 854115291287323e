from __future__ import annotations

import hashlib
import io
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as Pil

from data.images import (
    ImageInfo,
    check_image,
    content_hash,
    image_path,
    inspect_image,
    open_image,
    pad_square,
    pixel_hash,
)
from data.jsonl import DataError
from data.schema import Image


def png(picture: Pil.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def opened(data: bytes, **options: int) -> Pil.Image:
    return open_image(Image(id="i", data=data), None, **options)


def test_path_and_bytes_give_the_same_rgb(tmp_path: Path) -> None:
    picture = Pil.fromarray(np.arange(60, dtype=np.uint8).reshape(4, 5, 3))
    (tmp_path / "sub").mkdir()
    picture.save(tmp_path / "sub" / "a.png")
    got = open_image(Image(id="a", path="sub/a.png"), tmp_path)
    assert got.mode == "RGB" and got.size == (5, 4)
    assert np.array_equal(np.asarray(got), np.asarray(picture))
    assert np.array_equal(np.asarray(opened(png(picture))), np.asarray(picture))


def test_transparency_lies_over_white() -> None:
    rgba = Pil.new("RGBA", (2, 1), (200, 0, 0, 255))
    rgba.putpixel((1, 0), (0, 0, 0, 0))
    assert list(opened(png(rgba)).getdata()) == [(200, 0, 0), (255, 255, 255)]
    assert inspected(png(rgba)).notes == ("transparent: laid on white",)
    half = Pil.new("LA", (1, 1), (0, 128))
    assert opened(png(half)).getpixel((0, 0)) == (127, 127, 127)
    palette = Pil.new("P", (2, 1), 0)
    palette.putpalette([10, 20, 30, 40, 50, 60])
    palette.putpixel((1, 0), 1)
    got = opened(png(palette, transparency=0))
    assert list(got.getdata()) == [(255, 255, 255), (40, 50, 60)]


@pytest.mark.parametrize(
    "path", ["../secret.png", "a/../../secret.png", "/etc/passwd", "C:/x.png", "", "x\0y"]
)
def test_no_path_leaves_the_root(tmp_path: Path, path: str) -> None:
    root = tmp_path / "root"
    root.mkdir()
    Pil.new("RGB", (1, 1)).save(tmp_path / "secret.png")
    with pytest.raises(DataError, match="leaves the image root"):
        open_image(Image(id="i", path=path), root)


def test_a_link_out_of_the_root_is_refused_and_one_inside_is_not(tmp_path: Path) -> None:
    root = tmp_path / "root"
    (root / "real").mkdir(parents=True)
    Pil.new("RGB", (1, 1)).save(tmp_path / "secret.png")
    Pil.new("RGB", (1, 1)).save(root / "real" / "a.png")
    os.symlink(tmp_path / "secret.png", root / "out.png")
    os.symlink(root / "real", root / "alias")
    os.symlink(root, tmp_path / "linked_root")
    with pytest.raises(DataError, match="leaves the image root"):
        image_path(Image(id="i", path="out.png"), root)
    inside = image_path(Image(id="i", path="alias/a.png"), tmp_path / "linked_root")
    assert inside.samefile(root / "real" / "a.png")


def test_what_cannot_be_opened_says_why(tmp_path: Path) -> None:
    whole = png(Pil.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)))
    jpeg = png(Pil.new("RGB", (64, 64)), "JPEG")
    (tmp_path / "folder.png").mkdir()
    cases = [
        (Image(id="i", path="none.png"), tmp_path, "no file 'none.png'"),
        (Image(id="i", path="folder.png"), tmp_path, "no file"),
        (Image(id="i", path="x" * 300), tmp_path, "no file"),
        (Image(id="i", path="a.png"), None, "give the image root"),
        (Image(id="i", data=b""), None, "empty"),
        (Image(id="i", data=b"not an image"), None, "cannot be decoded"),
        (Image(id="i", data=whole[: len(whole) // 2]), None, "cannot be decoded"),
        (Image(id="i", data=jpeg[: len(jpeg) - 40]), None, "cannot be decoded"),
        (Image(id="i", url="https://example.org/a.png"), None, "not fetched here"),
    ]
    for image, root, words in cases:
        with pytest.raises(DataError, match=words) as caught:
            open_image(image, root)
        assert caught.value.mend
    with pytest.raises(DataError, match="not an http"):
        open_image(Image(id="i", url="file:///etc/passwd"), None, allow_urls=True)


def test_oversized_images_are_refused_before_decoding() -> None:
    data = png(Pil.new("L", (100, 50)))
    with pytest.raises(DataError, match="100x50, more than 4999 pixels"):
        opened(data, max_pixels=4999)
    assert opened(data, max_pixels=5000).size == (100, 50)


def test_the_header_is_checked_without_decoding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    noise = Pil.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8))
    for name, data in (("whole.png", png(noise)), ("cut.png", png(noise)[:2000]), ("none.png", b"GIF")):
        (tmp_path / name).write_bytes(data)
    (tmp_path / "locked.png").mkdir()
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda _: pytest.fail("pixels were decoded"))
    for name in ("whole.png", "cut.png"):
        check_image(Image(id="i", path=name), tmp_path)
        check_image(Image(id="i", data=(tmp_path / name).read_bytes()), None)
    cases = [
        (Image(id="i", path="none.png"), "'none.png' cannot be decoded"),
        (Image(id="i", data=b"GIF"), "'i' cannot be decoded"),
        (Image(id="i", data=b""), "empty"),
        (Image(id="i", path="../whole.png"), "leaves the image root"),
        (Image(id="i", path="locked.png"), "no file"),
        (Image(id="i", url="https://example.org/a.png"), "URLs are not fetched here; download it into"),
    ]
    for image, words in cases:
        with pytest.raises(DataError) as caught:
            check_image(image, tmp_path)
        assert words in str(caught.value)
    monkeypatch.setattr("data.images.MAX_PIXELS", 64 * 64 - 1)
    with pytest.raises(DataError, match="64x64, more than 4095 pixels"):
        check_image(Image(id="i", path="whole.png"), tmp_path)


def test_pad_square_centres() -> None:
    wide = Pil.new("RGB", (4, 1), (9, 9, 9))
    square = np.asarray(pad_square(wide, (1, 2, 3)))
    assert square.shape == (4, 4, 3)
    assert (square[1] == 9).all()  # (4 - 1) // 2 rows above
    assert (square[[0, 2, 3]] == [1, 2, 3]).all()
    tall = np.asarray(pad_square(wide.transpose(Pil.Transpose.ROTATE_90), (1, 2, 3)))
    assert (tall[:, 1] == 9).all() and (tall[:, [0, 2, 3]] == [1, 2, 3]).all()


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def bare_png(
    width: int, height: int, bits: int, colour: int, rows: bytes, *more: bytes, late: bytes = b""
) -> bytes:
    """A PNG file by hand: ``colour`` 0 grey, 2 RGB, 4 grey with alpha; ``more`` comes before pixels."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0))
    pixels = chunk(b"IDAT", zlib.compress(rows))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(more) + pixels + late + chunk(b"IEND", b"")


def inspected(data: bytes) -> ImageInfo:
    return inspect_image(Image(id="i", data=data), None)


def turned(kind: str, orientation: int) -> bytes:
    """A picture of 3x2 whose upper left pixel is red, the upper right green, with an EXIF orientation."""
    picture = Pil.new("RGB", (30, 20))
    picture.paste((255, 0, 0), (0, 0, 10, 10))
    picture.paste((0, 255, 0), (20, 0, 30, 10))
    exif = Pil.Exif()
    exif[0x0112] = orientation
    return png(picture, kind, exif=exif)


def corners(picture: Pil.Image) -> str:
    """The colours of the corners, clockwise from the upper left: r, g, or k for black."""
    right, low = picture.width - 5, picture.height - 5
    points = [picture.getpixel(at) for at in ((4, 4), (right, 4), (right, low), (4, low))]
    return "".join("r" if p[0] > 120 else "g" if p[1] > 120 else "k" for p in points)


# how EXIF defines its values: where the stored row 0 and column 0 are shown
@pytest.mark.parametrize(
    ("orientation", "size", "shown"),
    [
        (1, (30, 20), "rgkk"),
        (2, (30, 20), "grkk"),
        (3, (30, 20), "kkrg"),
        (4, (30, 20), "kkgr"),
        (5, (20, 30), "rkkg"),
        (6, (20, 30), "krgk"),
        (7, (20, 30), "kgrk"),
        (8, (20, 30), "gkkr"),
        (9, (30, 20), "rgkk"),  # there is no such value
    ],
)
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_every_orientation_in_every_format(
    kind: str, orientation: int, size: tuple[int, int], shown: str
) -> None:
    data = turned(kind, orientation)
    picture, info = opened(data), inspected(data)
    assert picture.size == size and corners(picture) == shown
    assert (info.width, info.height, info.format, info.mode) == (*size, kind, "RGB")
    assert info.notes == (("turned by EXIF",) if 2 <= orientation <= 8 else ())


def test_a_png_may_tell_its_orientation_behind_the_pixels() -> None:
    exif = Pil.Exif()
    exif[0x0112] = 8
    block = chunk(b"eXIf", exif.tobytes().removeprefix(b"Exif\0\0"))
    data = bare_png(3, 2, 8, 0, (b"\0" + b"\7\7\7") * 2, late=chunk(b"tEXt", b"a\0b") + block)
    assert opened(data).size == (2, 3)
    assert inspected(data) == ImageInfo(2, 3, "PNG", "L", ("turned by EXIF",))


def test_a_damaged_exif_block_leaves_the_picture_alone() -> None:
    data = png(Pil.new("RGB", (3, 2)), "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff\1\2")
    assert opened(data).size == (3, 2)
    assert inspected(data) == ImageInfo(3, 2, "JPEG", "RGB", ())


def test_palette_bilevel_and_cmyk_jpeg() -> None:
    palette = Pil.new("P", (2, 1), 0)
    palette.putpalette([10, 20, 30, 40, 50, 60])
    palette.putpixel((1, 0), 1)
    assert [opened(png(palette)).getpixel((x, 0)) for x in (0, 1)] == [(10, 20, 30), (40, 50, 60)]
    assert inspected(png(palette)) == ImageInfo(2, 1, "PNG", "P", ())
    assert opened(png(Pil.new("1", (2, 1), 1))).getpixel((1, 0)) == (255, 255, 255)
    cmyk = png(Pil.new("CMYK", (16, 16), (0, 255, 255, 0)), "JPEG")
    red = opened(cmyk).getpixel((8, 8))
    assert red[0] > 200 and red[1] < 60 and red[2] < 60
    assert inspected(cmyk) == ImageInfo(16, 16, "JPEG", "CMYK", ())


def test_sixteen_bits_a_channel() -> None:
    rgb = struct.pack(">HHHHHH", 0, 257 * 100, 65535, 257 * 7, 257 * 8, 257 * 9)
    grey, alpha = struct.pack(">HH", 257 * 100, 257 * 200), struct.pack(">HHHH", 25700, 65535, 25700, 0)
    white, laid = (255,) * 3, ("transparent: laid on white",)
    cases = [
        (bare_png(2, 1, 16, 2, b"\0" + rgb), [(0, 100, 255), (7, 8, 9)], ()),
        (bare_png(2, 1, 16, 0, b"\0" + grey), [(100,) * 3, (200,) * 3], ()),
        # all values below 256 of 65535 are black
        (bare_png(2, 1, 16, 0, b"\0\0\x05\0\x60"), [(0, 0, 0), (0, 0, 0)], ()),
        # the first colour is the transparent one
        (bare_png(2, 1, 16, 0, b"\0" + grey, chunk(b"tRNS", grey[:2])), [white, (200,) * 3], laid),
        (bare_png(2, 1, 16, 2, b"\0" + rgb, chunk(b"tRNS", rgb[:6])), [white, (7, 8, 9)], laid),
        (bare_png(2, 1, 16, 4, b"\0" + alpha), [(100,) * 3, white], laid),
    ]
    for data, pixels, more in cases:
        assert [opened(data).getpixel((x, 0)) for x in (0, 1)] == pixels
        info = inspected(data)
        assert (info.width, info.height, info.notes) == (2, 1, ("16 bits a channel", *more))
    deep = Pil.fromarray(np.array([[0, 257 * 100]], dtype=np.uint16))
    assert opened(png(deep, "TIFF")).getpixel((1, 0)) == (100, 100, 100)
    assert inspected(png(deep, "TIFF")).notes == ("16 bits a channel",)


def test_sixteen_bits_a_pixel_are_not_a_channel_s() -> None:
    header = struct.pack("<IiiHHIIiiII", 40, 1, 1, 1, 16, 3, 4, 0, 0, 0, 0)
    masks = struct.pack("<III", 0xF800, 0x07E0, 0x001F)
    start = 14 + len(header + masks)
    bmp = b"BM" + struct.pack("<IHHI", start + 4, 0, 0, start) + header + masks + b"\0\xf8\0\0"
    assert opened(bmp).getpixel((0, 0)) == (255, 0, 0)
    assert inspected(bmp) == ImageInfo(1, 1, "BMP", "RGB", ())


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF"])
def test_the_first_of_several_frames_is_used_and_it_is_said(kind: str) -> None:
    frames = [Pil.new("RGB", (8, 4), c) for c in ((255, 0, 0), (0, 255, 0), (0, 0, 255))]
    data = png(frames[0], kind, save_all=True, append_images=frames[1:])
    red = opened(data).getpixel((4, 2))
    assert red[0] > 240 and red[1] < 15 and red[2] < 15
    (note,) = inspected(data).notes
    said = "3 pictures in one file" if kind == "TIFF" else "animated: 3 frames"
    assert note == f"{said}, the first is used"
    assert inspected(png(frames[0], kind)).notes == ()


def test_no_area_no_bytes_and_too_many_pixels(tmp_path: Path) -> None:
    (tmp_path / "empty.png").touch()
    bombs = {side: bare_png(side, side, 1, 0, b"") for side in (9_460, 13_000, 60_000)}
    cases = [
        (bare_png(0, 5, 8, 0, b""), "cannot be decoded|has no area"),
        (b"P6 0 5 255\n", "cannot be decoded|has no area"),
        (bombs[9_460], "9460x9460, more than 89478485 pixels"),
        (bombs[13_000], "13000x13000, more than"),
        (bombs[60_000], "too large|more than"),  # beyond what Pillow itself opens
    ]
    for data, words in cases:
        for ask in (open_image, inspect_image, check_image, pixel_hash, content_hash):
            with pytest.raises(DataError, match=words) as caught:
                ask(Image(id="i", data=data), None)
            assert caught.value.key == "image" and caught.value.mend
    for ask in (open_image, inspect_image, check_image, pixel_hash, content_hash):
        with pytest.raises(DataError, match=r"image 'i' is empty \(0 bytes\)") as caught:
            ask(Image(id="i", path="empty.png"), tmp_path)
        assert caught.value.key == "image"


@pytest.mark.filterwarnings("error")
def test_a_warning_of_pillow_that_is_made_an_error_is_one_of_ours() -> None:
    with pytest.raises(DataError, match=r"too large|more than"):
        opened(bare_png(13_000, 13_000, 1, 0, b""))


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF"])
def test_truncated_anywhere(kind: str) -> None:
    noise = Pil.fromarray(np.random.default_rng(0).integers(0, 255, (24, 24, 3), dtype=np.uint8))
    data = png(noise, kind)
    for share in (0.05, 0.3, 0.6, 0.9):
        with pytest.raises(DataError, match="cannot be decoded") as caught:
            opened(data[: int(len(data) * share)])
        assert caught.value.key == "image" and "damaged" in caught.value.mend


@pytest.mark.parametrize(
    "data",
    [
        b"<!DOCTYPE html><html></html>",
        b"%PDF-1.7\n",
        b"\x89PNG\r\n\x1a\n",
        b"\xff\xd8\xff",
        b"PK\3\4",
        b"\0" * 99,
    ],
)
def test_what_is_no_image(data: bytes) -> None:
    for ask in (open_image, inspect_image, check_image, content_hash):
        with pytest.raises(DataError, match="'i' cannot be decoded"):
            ask(Image(id="i", data=data), None)


def test_no_other_program_is_started_for_a_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("subprocess.Popen", lambda *a, **k: pytest.fail("a program was started"))
    with pytest.raises(DataError, match="is EPS, which is not read here; save it as PNG"):
        opened(png(Pil.new("RGB", (4, 4)), "EPS"))


def test_links_and_names_that_lead_nowhere(tmp_path: Path) -> None:
    os.symlink(tmp_path / "b", tmp_path / "a")
    os.symlink(tmp_path / "a", tmp_path / "b")
    os.symlink(tmp_path / "gone.png", tmp_path / "dangling.png")
    os.symlink(tmp_path.parent, tmp_path / "up")
    (tmp_path.parent / "beside.png").write_bytes(png(Pil.new("RGB", (1, 1))))
    for path in ("a", "a/x.png", "dangling.png", "\ud800.png", "x" * 5000, "x/" * 3000):
        with pytest.raises(DataError, match="no file") as caught:
            open_image(Image(id="i", path=path), tmp_path)
        assert caught.value.key == "image.path" and "check the name" in caught.value.mend
    with pytest.raises(DataError, match="leaves the image root"):
        open_image(Image(id="i", path="up/beside.png"), tmp_path)


def test_hashes_by_hand(tmp_path: Path) -> None:
    picture = Pil.fromarray(np.arange(60, dtype=np.uint8).reshape(4, 5, 3))
    data = png(picture)
    (tmp_path / "a.png").write_bytes(data)
    image = Image(id="a", path="a.png")
    assert content_hash(image, tmp_path) == hashlib.sha256(data).hexdigest()
    assert pixel_hash(image, tmp_path) == hashlib.sha256(b"5x4\n" + bytes(range(60))).hexdigest()


def test_what_is_equal_by_content_and_by_pixels() -> None:
    picture = Pil.fromarray(np.random.default_rng(1).integers(0, 255, (4, 6, 3), dtype=np.uint8))
    exif = Pil.Exif()
    exif[0x0112] = 6
    aside = picture.transpose(Pil.Transpose.ROTATE_90)  # which EXIF turns back
    copies = [png(picture), png(picture, compress_level=0), png(picture, "BMP"), png(aside, exif=exif)]
    copies.append(png(picture, "WEBP", lossless=True))
    images = [Image(id=str(i), data=data) for i, data in enumerate(copies)]
    assert len({pixel_hash(i, None) for i in images}) == 1
    assert len({content_hash(i, None) for i in images}) == len(images)
    # the same bytes in another shape, and one other value, are other pictures
    flat = Pil.fromarray(np.asarray(picture).reshape(6, 4, 3))
    other = picture.copy()
    other.putpixel((5, 3), tuple(255 - v for v in picture.getpixel((5, 3))))
    for changed in (flat, other):
        assert pixel_hash(Image(id="i", data=png(changed)), None) != pixel_hash(images[0], None)


def test_inspecting_decodes_no_pixels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    noise = Pil.fromarray(np.random.default_rng(0).integers(0, 255, (64, 32, 3), dtype=np.uint8))
    for kind in ("PNG", "JPEG", "WEBP", "GIF", "TIFF"):
        (tmp_path / kind).write_bytes(png(noise, kind))
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda _: pytest.fail("pixels were decoded"))
    for kind in ("PNG", "JPEG", "WEBP", "GIF", "TIFF"):
        info = inspect_image(Image(id="i", path=kind), tmp_path)
        assert (info.width, info.height, info.format) == (32, 64, kind)
