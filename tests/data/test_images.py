from __future__ import annotations

import io
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as Pil

from data.images import check_image, image_path, open_image, pad_square
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
    half = Pil.new("LA", (1, 1), (0, 128))
    assert opened(png(half)).getpixel((0, 0)) == (127, 127, 127)
    palette = Pil.new("P", (2, 1), 0)
    palette.putpalette([10, 20, 30, 40, 50, 60])
    palette.putpixel((1, 0), 1)
    got = opened(png(palette, transparency=0))
    assert list(got.getdata()) == [(255, 255, 255), (40, 50, 60)]


def test_exif_turns_the_image() -> None:
    picture = Pil.new("RGB", (3, 2))
    exif = Pil.Exif()
    exif[0x0112] = 6  # rotate 90 degrees clockwise to show
    assert opened(png(picture, "JPEG", exif=exif)).size == (2, 3)


def test_first_frame_sixteen_bits_and_cmyk() -> None:
    frames = [Pil.new("RGB", (2, 2), c) for c in ((255, 0, 0), (0, 0, 255))]
    gif = png(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert opened(gif).getpixel((0, 0)) == (255, 0, 0)
    deep = Pil.fromarray(np.array([[0, 257 * 100, 65535]], dtype=np.uint16))
    assert [p[0] for p in opened(png(deep)).getdata()] == [0, 100, 255]
    cmyk = Pil.new("CMYK", (8, 8), (0, 255, 255, 0))
    red = opened(png(cmyk, "TIFF")).getpixel((4, 4))
    assert red[0] > 200 and red[1] < 60 and red[2] < 60


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
