"""Decoding every kind of picture, refusing every kind of damage, and resizing as the peers do."""

import io
import struct
import zlib

import hypothesis
import hypothesis.strategies as st
import jax
import numpy as np
import pytest
import simplejpeg
from PIL import Image, ImageOps

from big_mm.data import images
from big_mm.data.damage import BadRecord

WHITE = np.array([255, 255, 255])


def picture(height=40, width=56, seed=0):
    """A smooth picture with an edge, so that chroma subsampling and JPEG hardly change it."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    waves = [127 + 120 * np.sin((x * a + y * b) / 20) for a, b in rng.uniform(0.2, 1, (3, 2))]
    array = np.stack(waves, -1)
    array[: height // 4, : width // 3] = (250, 20, 60)
    return array.astype(np.uint8)


def encoded(image, format="PNG", **options):
    image = Image.fromarray(image) if isinstance(image, np.ndarray) else image
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def pillow(data):
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


@pytest.mark.parametrize(
    "options",
    [
        {"subsampling": 0},
        {"subsampling": 1},
        {"subsampling": 2},
        {"progressive": True},
        {"restart_marker_blocks": 2},
        {"optimize": True},
    ],
)
def test_jpeg_equals_pillow(options):
    data = encoded(picture(), "JPEG", quality=90, **options)
    np.testing.assert_array_equal(images.decode(data), pillow(data))


@pytest.mark.parametrize("format", ["PNG", "WEBP", "GIF", "BMP"])
def test_lossless_formats_give_the_pixels_back(format):
    array = picture() // 64 * 64  # few colours: GIF has a palette
    options = {"lossless": True} if format == "WEBP" else {}
    np.testing.assert_array_equal(images.decode(encoded(array, format, **options)), array)


@pytest.mark.parametrize("format", ["JPEG", "PNG"])
def test_grey_becomes_three_equal_channels(format):
    grey = picture()[..., 0]
    decoded = images.decode(encoded(grey, format, **({"quality": 95} if format == "JPEG" else {})))
    assert decoded.shape == (*grey.shape, 3)
    assert np.ptp(decoded, axis=-1).max() == 0
    assert np.abs(decoded[..., 0].astype(int) - grey).max() <= (24 if format == "JPEG" else 0)


def test_one_bit_and_palette():
    array = picture()
    bits = Image.fromarray(array).convert("1")
    np.testing.assert_array_equal(
        images.decode(encoded(bits))[..., 1], np.asarray(bits).astype(np.uint8) * 255
    )
    palette = Image.fromarray(array).quantize(16)
    np.testing.assert_array_equal(
        images.decode(encoded(palette)), np.asarray(palette.convert("RGB"))
    )


@pytest.mark.parametrize("invert", [False, True])
def test_cmyk_jpeg_shows_its_colours(invert):
    """Pillow writes Adobe's inverted CMYK; what a viewer shows is the original colour."""
    colours = np.array([[250, 10, 10], [10, 250, 10], [10, 10, 250], [250, 250, 250]], np.uint8)
    array = np.repeat(np.repeat(colours[None], 16, 1), 16, 0)
    data = encoded(Image.fromarray(array).convert("CMYK"), "JPEG", quality=95)
    assert simplejpeg.decode_jpeg_header(data)[2] == "CMYK"
    if invert:  # without Adobe's marker the same numbers mean the opposite ink
        marker = data.index(b"\xff\xee")
        length = int.from_bytes(data[marker + 2 : marker + 4])
        data = data[:marker] + data[marker + 2 + length :]
    np.testing.assert_array_equal(images.decode(data), pillow(data))
    if not invert:
        assert np.abs(images.decode(data).astype(int) - array).max() < 40


@pytest.mark.parametrize(("mode", "format"), [("RGBA", "PNG"), ("LA", "PNG"), ("RGBA", "WEBP")])
def test_transparency_is_white(mode, format):
    array = picture()
    alpha = np.zeros(array.shape[:2], np.uint8)
    alpha[:, 20:] = 255
    alpha[:10, 20:] = 128
    image = Image.fromarray(array).convert("RGB" if mode == "RGBA" else "L")
    expected = np.asarray(image.convert("RGB")).astype(int)
    expected = WHITE + (expected - WHITE) * (alpha[..., None] / 255)
    image.putalpha(Image.fromarray(alpha))
    decoded = images.decode(encoded(image, format, lossless=True, exact=True))
    assert np.abs(decoded - expected).max() <= 1


def test_transparent_palette_entry_is_white():
    index = np.tile(np.array([0, 1], np.uint8), (8, 4))
    image = Image.frombytes("P", (8, 8), index.tobytes())
    image.putpalette([200, 0, 0, 0, 0, 200])
    decoded = images.decode(encoded(image, transparency=0))
    np.testing.assert_array_equal(decoded[0, 0], WHITE)
    np.testing.assert_array_equal(decoded[0, 1], [0, 0, 200])


def png(header, rows):
    """A PNG file from its IHDR fields and raw rows (each with its filter byte)."""

    def chunk(kind, body):
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    parts = [chunk(b"IHDR", struct.pack(">IIBBBBB", *header)), chunk(b"IDAT", zlib.compress(rows))]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts) + chunk(b"IEND", b"")


@pytest.mark.parametrize(("colour_type", "channels"), [(0, 1), (2, 3)])
def test_sixteen_bit_png_keeps_the_high_byte(colour_type, channels):
    values = np.linspace(0, 65535, 5 * 7 * channels).astype(">u2").reshape(5, 7 * channels)
    rows = b"".join(b"\0" + row.tobytes() for row in values)
    decoded = images.decode(png((7, 5, 16, colour_type, 0, 0, 0), rows))
    high = (values >> 8).astype(np.uint8).reshape(5, 7, channels)
    np.testing.assert_array_equal(decoded, np.broadcast_to(high, (5, 7, 3)))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
def test_exif_orientation(format, orientation):
    image = Image.fromarray(picture())
    exif = Image.Exif()
    exif[0x010F] = "a maker's name, so that the tag is not the first"
    exif[0x0112] = orientation
    options = {"JPEG": {"quality": 95}, "WEBP": {"lossless": True}}.get(format, {})
    data = encoded(image, format, exif=exif, **options)
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    np.testing.assert_array_equal(images.decode(data), np.asarray(upright.convert("RGB")))
    big_endian = b"MM\0*" + struct.pack(">IHHHIHHI", 8, 1, 0x0112, 3, 1, orientation, 0, 0)
    data = encoded(image, format, exif=b"Exif\0\0" + big_endian, **options)
    np.testing.assert_array_equal(images.decode(data), np.asarray(upright.convert("RGB")))


@pytest.mark.parametrize(
    "exif", [b"", b"II*\0", b"II*\0\xff\xff\xff\xff", b"nonsense", b"MM\0*\0\0\0\x08\xff\xff"]
)
def test_damaged_exif_is_no_exif(exif):
    data = encoded(picture(), "JPEG")
    segment = b"\xff\xe1" + struct.pack(">H", len(exif) + 8) + b"Exif\0\0" + exif
    np.testing.assert_array_equal(images.decode(data[:2] + segment + data[2:]), images.decode(data))


def kind_of(data, **options):
    with pytest.raises(BadRecord) as caught:
        images.decode(data, **options)
    return caught.value.kind


def test_bombs_are_refused_by_their_header():
    """Neither would fit into memory: that this returns is the test."""
    assert kind_of(png((100_000, 100_000, 8, 2, 0, 0, 0), b"")) == "over_large"
    jpeg = bytearray(encoded(picture(), "JPEG"))
    frame = jpeg.index(b"\xff\xc0")
    jpeg[frame + 5 : frame + 9] = struct.pack(">HH", 65_000, 65_000)
    assert kind_of(bytes(jpeg)) == "over_large"
    gif = bytearray(encoded(picture(), "GIF"))
    gif[6:10] = struct.pack("<HH", 65_000, 65_000)
    assert kind_of(bytes(gif)) == "over_large"


@pytest.mark.parametrize("format", ["JPEG", "PNG"])
def test_the_limit_is_in_pixels(format):
    data = encoded(picture(), format)
    assert images.decode(data, max_pixels=40 * 56).shape == (40, 56, 3)
    assert kind_of(data, max_pixels=40 * 56 - 1) == "over_large"


@pytest.mark.parametrize(
    "options",
    [
        {"format": "JPEG"},
        {"format": "JPEG", "progressive": True},
        {"format": "PNG"},
        {"format": "WEBP"},
        {"format": "BMP"},
    ],
)
def test_truncation_is_damage_not_grey_fill(options):
    data = encoded(picture(), **options)
    for length in [0, 1, 3, 30, *range(len(data) // 10, len(data) - 12, len(data) // 10)]:
        assert kind_of(data[:length]) == "undecodable_image"


@pytest.mark.parametrize("data", [b"", b"<html>not found</html>", b"\xff\xd8\xff", b"GIF89a"])
def test_what_is_no_picture(data):
    assert kind_of(data) == "undecodable_image"


def test_trailing_and_extraneous_bytes_cost_nothing():
    data = encoded(picture(), "JPEG")
    for padded in (data + b"trailing", data[:-2] + b"\0\1\2" + data[-2:]):
        np.testing.assert_array_equal(images.decode(padded), images.decode(data))


SEEDS = [
    encoded(picture(), "JPEG"),
    encoded(
        picture(), "JPEG", progressive=True, exif=b"Exif\0\0II*\0\x08\0\0\0\x01\0" + b"\x12" * 12
    ),
    encoded(Image.fromarray(picture()).convert("CMYK"), "JPEG"),
    encoded(picture(), "PNG"),
    encoded(Image.fromarray(picture()).quantize(8), "PNG", transparency=3),
    encoded(picture(), "WEBP"),
    encoded(picture(), "GIF"),
    encoded(picture(), "BMP"),
]


@hypothesis.settings(max_examples=400)
@hypothesis.given(
    st.sampled_from(SEEDS),
    st.lists(st.tuples(st.integers(0, 2**16), st.integers(0, 255)), max_size=8),
    st.integers(0, 2**16),
    st.binary(max_size=8),
)
def test_mutated_files_decode_or_are_damaged(data, changes, cut, inserted):
    mutated = bytearray(data)
    for position, value in changes:
        mutated[position % len(mutated)] = value
    cut %= 2 * len(mutated)  # in half of the cases beyond the end: nothing is cut or inserted
    if cut < len(mutated):
        mutated[cut : cut + 3] = inserted
    try:
        decoded = images.decode(bytes(mutated), max_pixels=2**20)
    except BadRecord as damage:
        assert damage.kind in ("undecodable_image", "over_large")
    else:
        assert decoded.dtype == np.uint8 and decoded.ndim == 3 and decoded.size > 0


def box_mean(image, size):
    """What the area kernel means, in plain lines: overlap-weighted means along each axis."""

    def weights(old, new):
        edges = np.arange(new + 1) * old / new
        left, right = np.arange(old), np.arange(1, old + 1)
        overlap = np.minimum(edges[1:, None], right) - np.maximum(edges[:-1, None], left)
        return np.maximum(overlap, 0) * new / old

    rows, columns = weights(image.shape[0], size[0]), weights(image.shape[1], size[1])
    return np.einsum("ih,hwc,jw->ijc", rows, image.astype(float), columns)


@pytest.mark.parametrize("size", [(20, 28), (17, 31), (40, 9), (39, 55)])
def test_area_is_the_mean_over_the_footprint(size):
    image = picture()
    difference = images.resize(image, size, "area") - box_mean(image, size)
    assert np.abs(difference).max() <= 0.51


def test_area_shrinks_one_axis_and_grows_the_other():
    image = picture()
    expected = images.resize(images.resize(image, (20, 56), "area"), (20, 90), "bilinear")
    np.testing.assert_array_equal(images.resize(image, (20, 90), "area"), expected)


@pytest.mark.parametrize("shape", [(250, 250), (375, 500), (64, 300), (900, 1000)])
def test_supersample_suppresses_aliases_as_area_does(shape):
    """On a zone plate, which has every frequency: as near to the footprint's mean as makes no odds,
    while bilinear folds the high frequencies down into false rings."""
    y, x = (np.arange(n) - n / 2 for n in shape)
    rings = np.cos(np.pi * (y[:, None] ** 2 / shape[0] + x**2 / shape[1]))
    image = np.repeat((127.5 + 127.5 * rings).astype(np.uint8)[..., None], 3, -1)
    reference = images.resize(image, (56, 56), "bicubic").astype(float)
    error = {
        kernel: np.sqrt(np.mean((images.resize(image, (56, 56), kernel) - reference) ** 2))
        for kernel in ("area", "supersample", "bilinear")
    }
    assert error["supersample"] < 1.3 * error["area"] < 0.6 * error["bilinear"]


@pytest.mark.parametrize("size", [(20, 28), (17, 31), (90, 100), (40, 56)])
def test_bilinear_equals_jax(size):
    image = picture()
    expected = jax.image.resize(image.astype(np.float32), (*size, 3), "linear", antialias=False)
    assert np.abs(images.resize(image, size, "bilinear") - np.asarray(expected)).max() <= 1


@pytest.mark.parametrize("size", [(20, 28), (17, 31), (90, 100)])
def test_bicubic_is_pillows(size):
    expected = Image.fromarray(picture()).resize(size[::-1], Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(images.resize(picture(), size, "bicubic"), np.asarray(expected))


@pytest.mark.parametrize("kernel", images.KERNELS)
@pytest.mark.parametrize("shape", [(40, 57), (57, 40), (10, 300), (31, 31)])
def test_fit_crop_is_torchvisions(kernel, shape):
    """Resize(32) then CenterCrop(32) of torchvision 0.28, their rounding written out."""
    image = picture(*shape)
    short, long = sorted(shape)
    other = int(32 * long / short)
    size = (32, other) if shape[0] <= shape[1] else (other, 32)
    resized = images.resize(image, size, kernel)
    top, left = (int(round((s - 32) / 2.0)) for s in resized.shape[:2])
    np.testing.assert_array_equal(
        images.fit(image, 32, "crop", kernel), resized[top : top + 32, left : left + 32]
    )
    assert images.fit(image, 32, "squash", kernel).shape == (32, 32, 3)


@pytest.mark.parametrize("kernel", images.KERNELS)
def test_a_flat_picture_stays_flat_and_input_is_untouched(kernel):
    flat = np.full((37, 53, 3), 200, np.uint8)
    flat.flags.writeable = False
    # TensorFlow's weights may sum to just below one, and the fraction is dropped (tests/interop).
    stays = {200, 199} if kernel in ("tf_triangle", "tf_bicubic", "tf_area") else {200}
    for size in ((10, 10), (37, 53), (80, 20), (90, 90)):
        assert set(np.unique(images.resize(flat, size, kernel))) <= stays
        assert set(np.unique(images.resize(flat[::2, 3:-3], size, kernel))) <= stays


def test_unknown_kernel_and_method():
    with pytest.raises(Exception, match="lanczos"):
        images.resize(picture(), (8, 8), "lanczos")
    with pytest.raises(Exception, match="stretch"):
        images.fit(picture(), 8, "stretch", "area")
