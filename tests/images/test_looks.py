"""Images that decode otherwise than they look: refused by name, with the way out, whatever is asked of them."""

import struct
import zlib

import numpy as np
import pytest
from helpers.image_sets import cache_files, make_tree, noise
from PIL import Image, PngImagePlugin

from metasp_lite.images import folder, sources

UPRIGHT, TO_RGB = folder.Decoding(), folder.Decoding((3, None, None), size=4, to_rgb=True)


def picture(mode="RGB", seed=0):
    bands = {"L": (6, 5), "RGB": (6, 5, 3), "RGBA": (6, 5, 4), "LA": (6, 5, 2)}
    return Image.fromarray(noise(seed, *bands[mode]))


def turned(number):
    exif = Image.Exif()
    exif[0x0112] = number
    return exif


def by_xmp(number):
    return f'<x:xmpmeta xmlns:x="adobe:ns:meta/"><a tiff:Orientation="{number}"/></x:xmpmeta>'.encode()


def png_of_16_bits(path, channels):
    """Written by hand, for Pillow writes no coloured one."""
    rows = b"".join(b"\0" + noise(row, 5 * channels * 2).tobytes() for row in range(6))
    kind = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", 5, 6, 16, kind, 0, 0, 0)),
        (b"IDAT", zlib.compress(rows)),
        (b"IEND", b""),
    ]
    packed = [struct.pack(">I", len(c)) + n + c + struct.pack(">I", zlib.crc32(n + c)) for n, c in chunks]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(packed))


def frames(path, **how):
    picture().save(path, save_all=True, append_images=[picture(seed=1)], **how)


def palette(path):
    picture().quantize(8).save(path, transparency=3)


def colour_key(path, mode):
    image = picture(mode)
    image.save(path, transparency=image.getpixel((0, 0)))


TEXT = PngImagePlugin.PngInfo()
TEXT.add_itxt("XML:com.adobe.xmp", by_xmp(6).decode())

ODD = {
    **{
        f"turned {number} {suffix}": (suffix, lambda p, n=number: picture().save(p, exif=turned(n)), "orientation tag")
        for number in range(2, 9)
        for suffix in ("jpg", "png", "webp")
    },
    "turned by XMP in a photo": ("jpg", lambda path: picture().save(path, xmp=by_xmp(8)), r"orientation tag \(8\)"),
    "turned by XMP in a PNG": ("png", lambda path: picture().save(path, pnginfo=TEXT), r"orientation tag \(6\)"),
    "grey and turned": ("png", lambda path: picture("L").save(path, exif=turned(3)), "orientation tag"),
    "animated PNG": ("png", frames, "animation of 2 frames"),
    "animated PNG with a picture before": ("png", lambda p: frames(p, default_image=True), "animation of 2 frames"),
    "animated WebP": ("webp", frames, "animation of 2 frames"),
    "coloured, 16 bits": ("png", lambda path: png_of_16_bits(path, 3), "16 bits a channel"),
    "a transparent grey": ("png", lambda path: colour_key(path, "L"), "transparent in places"),
    "a transparent colour": ("png", lambda path: colour_key(path, "RGB"), "transparent in places"),
}  # fmt: skip
MODES = {
    "grey, 16 bits": ("png", lambda path: png_of_16_bits(path, 1), "16 bits a channel"),
    "grey with alpha, 16 bits": ("png", lambda path: png_of_16_bits(path, 2), "16 bits a channel"),
    "alpha, 16 bits": ("png", lambda path: png_of_16_bits(path, 4), "16 bits a channel"),
    "a palette with transparency": ("png", palette, "transparent in places"),
    "alpha": ("png", lambda path: picture("RGBA").save(path), "transparent in places"),
    "grey with alpha": ("png", lambda path: picture("LA").save(path), "transparent in places"),
    "WebP with alpha": ("webp", lambda path: picture("RGBA").save(path, lossless=True), "transparent in places"),
}


@pytest.mark.parametrize("defect", [*ODD, *MODES])
def test_what_looks_otherwise_is_refused_also_where_all_modes_are_welcome(tmp_path, defect):
    suffix, write, reason = (ODD | MODES)[defect]
    path = tmp_path / f"a.{suffix}"
    write(path)
    with pytest.raises(ValueError, match=rf"a\.{suffix} .*{reason}.*; .*, or remove it$"):
        folder.decode(path, TO_RGB)


@pytest.mark.parametrize("defect", [*ODD, *MODES])
def test_what_looks_otherwise_is_refused_in_a_plain_folder(tmp_path, defect):
    suffix, write, reason = (ODD | MODES)[defect]
    path = tmp_path / f"a.{suffix}"
    write(path)
    with pytest.raises(ValueError, match=rf"a\.{suffix} ({'.*' + reason if defect in ODD else 'has mode'})"):
        folder.decode(path, UPRIGHT)


def test_a_file_in_a_folder_is_refused_before_a_cache_is_there(home):
    make_tree(home / "toy")
    picture().save(home / "toy/train/dog/1.png", exif=turned(6))
    with pytest.raises(ValueError, match=r"dog/1\.png has an orientation tag \(6\).*exif_transpose"):
        sources.load("toy")
    assert cache_files() == []


@pytest.mark.parametrize("suffix", ["png", "webp", "jpg"])
def test_the_way_out_of_a_tag_leads_out(tmp_path, suffix):
    from PIL import ImageOps

    path = tmp_path / f"a.{suffix}"
    picture().save(path, exif=turned(6))
    with Image.open(path) as image:
        upright = ImageOps.exif_transpose(image)
    upright.save(path)
    assert folder.decode(path, UPRIGHT).shape == (3, 5, 6)


def as_rgb(image):
    return np.asarray(image.convert("RGB")).transpose(2, 0, 1)


@pytest.mark.parametrize(
    ("name", "image", "options"),
    [
        ("an upright tag.png", picture(), {"exif": turned(1)}),
        ("an upright tag.webp", picture(), {"exif": turned(1), "lossless": True}),
        ("no tag at all.png", picture(), {"exif": Image.Exif()}),
        ("another text.png", picture(), {"pnginfo": PngImagePlugin.PngInfo()}),
        ("a palette.png", picture().quantize(8), {}),
        ("a grey.png", picture("L"), {}),
        ("opaque alpha.png", picture().convert("RGBA"), {}),
        ("black and white.png", picture("L").convert("1"), {}),
    ],
)
def test_what_looks_as_it_is_is_read(tmp_path, name, image, options):
    image.save(tmp_path / name, **options)
    assert np.array_equal(folder.decode(tmp_path / name, folder.Decoding(to_rgb=True)), as_rgb(image))


def test_a_photo_with_a_second_picture_is_read_as_its_first(tmp_path):
    """As some telephones store photos; every viewer shows the first."""
    path = tmp_path / "a.jpg"
    picture().save(path, "MPO", save_all=True, append_images=[picture(seed=1)])
    picture().save(tmp_path / "first.jpg")
    assert np.array_equal(folder.decode(path, UPRIGHT), folder.decode(tmp_path / "first.jpg", UPRIGHT))
