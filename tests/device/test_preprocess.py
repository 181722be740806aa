"""Preprocessing equals Pillow where Pillow has the step, the formula elsewhere; damaged files end in a DataError."""

from __future__ import annotations

import gzip
import io
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from real_data import real_data

from edgekd.device.preprocess import apply_arithmetic, prepare, preprocess, split_steps
from edgekd.device.resampling import resize
from edgekd.errors import DataError, MissingExtra, RecipeError
from edgekd.spec import CenterCrop, Decode, Layout, Normalize, Resize, Scale, ToGrey, ToRgb, parse_steps

PILLOW = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
}
SIDE = st.integers(1, 70)


def random_image(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def pillow_resize(image_HWC, height, width, name):
    """Pillow, one axis at a time: which axis it takes first depends on its version."""
    image = Image.fromarray(image_HWC[..., 0] if image_HWC.shape[2] == 1 else image_HWC)
    if name == "nearest":
        resized = image.resize((width, height), PILLOW[name])
    else:
        resized = image.resize((width, image.height), PILLOW[name]).resize((width, height), PILLOW[name])
    return np.asarray(resized).reshape(height, width, image_HWC.shape[2])


def encoded(image, kind="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


# --- resize -----------------------------------------------------------------------------------------------------------


@settings(max_examples=150, deadline=None)
@given(SIDE, SIDE, SIDE, SIDE, st.sampled_from([1, 3]), st.sampled_from(sorted(PILLOW)), st.integers(0, 9))
def test_resize_of_bytes_is_equal_to_pillow(height, width, to_height, to_width, channels, name, seed):
    image = random_image(height, width, channels, seed=seed)
    found = resize(image, to_height, to_width, filter=name)
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, pillow_resize(image, to_height, to_width, name))


@settings(max_examples=60, deadline=None)
@given(SIDE, SIDE, SIDE, SIDE, st.sampled_from(["bilinear", "bicubic"]))
def test_resize_of_floats_is_equal_to_pillow(height, width, to_height, to_width, name):
    image = np.random.default_rng(3).random((height, width, 1), dtype=np.float32)
    found = resize(image, to_height, to_width, filter=name)
    expected = Image.fromarray(image[..., 0]).resize((to_width, to_height), PILLOW[name])
    assert found.dtype == np.float32
    np.testing.assert_allclose(found[..., 0], np.asarray(expected), atol=2e-6)


@pytest.mark.parametrize("size", [(224, 224), (96, 128), (31, 57), (500, 333)])
@pytest.mark.parametrize("name", sorted(PILLOW))
def test_resize_of_a_photo_is_within_one_of_pillow(size, name):
    from sklearn.datasets import load_sample_image

    photo = load_sample_image("china.jpg")
    found = resize(photo, *size, filter=name).astype(int)
    assert np.abs(found - np.asarray(Image.fromarray(photo).resize(size[::-1], PILLOW[name]))).max() <= 1


def test_resize_of_fashion_images_is_equal_to_pillow():
    packed = real_data("FashionMNIST") / "raw" / "t10k-images-idx3-ubyte.gz"
    images = np.frombuffer(gzip.decompress(packed.read_bytes()), np.uint8, offset=16).reshape(-1, 28, 28, 1)[:100]
    for image in images:
        for side in (32, 14, 20):
            np.testing.assert_array_equal(
                resize(image, side, side, filter="bilinear"), pillow_resize(image, side, side, "bilinear")
            )


def test_without_antialias_two_pixels_make_one():
    image = np.arange(8, dtype=np.float32).reshape(1, 8, 1)
    np.testing.assert_allclose(resize(image, 1, 2, filter="bilinear", antialias=False).ravel(), [1.5, 5.5])
    spread = resize(image, 1, 2, filter="bilinear").ravel()
    assert spread[0] > 1.5  # with antialias, all eight count
    up = resize(image[:, :2], 1, 4, filter="bilinear", antialias=False).ravel()
    np.testing.assert_allclose(up, [0, 0.25, 0.75, 1])


@pytest.mark.parametrize(("shape", "expected"), [((20, 10), (16, 8)), ((10, 25), (8, 20)), ((9, 9), (8, 8))])
def test_one_number_is_the_shorter_side(shape, expected):
    assert prepare([Resize(size=8)], random_image(*shape)).shape == (*expected, 1)


def test_a_thin_picture_does_not_fill_the_memory():
    with pytest.raises(DataError, match="would be 200000 pixels long, expected at most 16384; crop it first"):
        prepare([Resize(size=200)], random_image(2, 2000))


# --- decode -----------------------------------------------------------------------------------------------------------


def test_a_path_and_bytes_and_pixels_are_the_same(tmp_path):
    pixels = random_image(5, 7, 3)
    data = encoded(Image.fromarray(pixels))
    (tmp_path / "a.png").write_bytes(data)
    for raw in (tmp_path / "a.png", str(tmp_path / "a.png"), data, pixels):
        np.testing.assert_array_equal(prepare([Decode()], raw), pixels)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(orientation):
    from PIL import ImageOps

    image = Image.fromarray(random_image(4, 6, 3))
    exif = image.getexif()
    exif[0x0112] = orientation
    data = encoded(image, exif=exif)
    turned = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))))
    np.testing.assert_array_equal(prepare([Decode()], data), turned)
    assert prepare([Decode()], data).shape == ((6, 4, 3) if orientation > 4 else (4, 6, 3))
    assert prepare([Decode(exif=False)], data).shape == (4, 6, 3)


@pytest.mark.parametrize(("alpha", "expected"), [("black", 50), ("white", 178)])
@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_alpha_is_composed_over_the_colour(mode, alpha, expected):
    image = Image.fromarray(np.full((2, 2, 4), [100, 100, 100, 127], np.uint8), "RGBA").convert(mode)
    found = prepare([Decode(alpha=alpha)], encoded(image))
    assert found.shape == (2, 2, 3 if mode == "RGBA" else 1)
    np.testing.assert_allclose(found, expected, atol=1)


def test_a_transparent_palette_colour_is_composed():
    image = Image.fromarray(np.array([[0, 1]], np.uint8), "P")
    image.putpalette([255, 0, 0, 0, 255, 0])
    found = prepare([Decode(alpha="white")], encoded(image, transparency=0))
    assert found.tolist() == [[[255, 255, 255], [0, 255, 0]]]


def test_grey_stays_one_channel_and_16_bit_keeps_its_upper_byte():
    grey = random_image(3, 4)
    np.testing.assert_array_equal(prepare([Decode()], encoded(Image.fromarray(grey)))[..., 0], grey)
    deep = (grey.astype(np.uint16) << 8) + 255
    np.testing.assert_array_equal(prepare([Decode()], encoded(Image.fromarray(deep)))[..., 0], grey)
    bits = Image.fromarray(np.array([[0, 255]], np.uint8)).convert("1")
    assert prepare([Decode()], encoded(bits))[..., 0].tolist() == [[0, 255]]


def test_cmyk_becomes_rgb():
    image = Image.new("CMYK", (2, 2), (0, 0, 0, 0))
    assert prepare([Decode()], encoded(image, "TIFF")).tolist() == [[[255] * 3] * 2] * 2


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"", r"broken\.png is empty \(0 bytes\), expected an image; remove or replace it"),
        (b"not an image", r"broken\.png cannot be decoded as an image"),
        (encoded(Image.fromarray(random_image(40, 40, 3)))[:300], r"broken\.png cannot be decoded as an image"),
    ],
)
def test_a_damaged_file_is_named(tmp_path, content, text):
    (tmp_path / "broken.png").write_bytes(content)
    with pytest.raises(DataError, match=text):
        prepare([Decode()], tmp_path / "broken.png")


def test_a_missing_file_and_a_folder_are_named(tmp_path):
    with pytest.raises(DataError, match=r"cannot read the image .*nowhere\.png: No such file"):
        prepare([Decode()], tmp_path / "nowhere.png")
    with pytest.raises(DataError, match=r"cannot read the image .*: Is a directory"):
        prepare([Decode()], tmp_path)


GOOD = [encoded(Image.fromarray(random_image(9, 9, 3)), kind) for kind in ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP")]


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(GOOD), st.data())
@pytest.mark.filterwarnings("ignore")  # Pillow warns about what it repairs
def test_mutated_files_decode_or_are_refused(good, data):
    damaged = bytearray(good)
    for _ in range(data.draw(st.integers(1, 6))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(damaged)))
    try:
        found = prepare([Decode()], bytes(damaged[:cut] if data.draw(st.booleans()) else damaged))
    except DataError:
        return
    assert found.dtype == np.uint8
    assert found.ndim == 3


def test_a_path_needs_a_decode_step(tmp_path):
    with pytest.raises(DataError, match=r"found the path a\.png, expected an array: this preprocessing has no decode"):
        prepare([], "a.png")
    with pytest.raises(DataError, match="found encoded bytes, expected an array"):
        prepare([ToGrey()], b"abc")


def test_without_pillow_the_pip_command_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(MissingExtra, match=r"decoding images needs .*pillow.*pip install 'edgekd\[image\]'"):
        prepare([Decode()], GOOD[0])
    assert prepare([Decode(), Resize(size=(2, 2))], random_image(4, 4)).shape == (2, 2, 1)


# --- channels and crop ------------------------------------------------------------------------------------------------


def test_grey_is_equal_to_pillow_and_close_in_floats():
    pixels = random_image(64, 64, 3)
    expected = np.asarray(Image.fromarray(pixels).convert("L"))
    np.testing.assert_array_equal(prepare([ToGrey()], pixels)[..., 0], expected)
    floats = prepare([ToGrey()], pixels.astype(np.float32))
    assert floats.dtype == np.float32
    assert np.abs(floats[..., 0] - expected).max() <= 0.51


def test_rgb_repeats_the_channel():
    grey = random_image(2, 3)
    found = prepare([ToRgb()], grey)
    assert found.shape == (2, 3, 3)
    assert (found == grey[..., np.newaxis]).all()
    colour = random_image(2, 3, 3)
    np.testing.assert_array_equal(prepare([ToRgb()], colour), colour)
    with pytest.raises(DataError, match=r"to_rgb: found 4 channels \(shape \(2, 3, 4\)\), expected 1 or 3"):
        prepare([ToRgb()], random_image(2, 3, 4))


@pytest.mark.parametrize("shape", [(9, 8), (8, 9), (5, 5), (6, 7)])
def test_center_crop_takes_the_pixels_that_torchvision_takes(shape):
    torch = pytest.importorskip("torch")
    from edgekd.distill.models.vision import import_torchvision

    import_torchvision()
    from torchvision.transforms.v2.functional import center_crop

    pixels = random_image(*shape)
    expected = center_crop(torch.from_numpy(pixels)[None], [4, 5]).numpy()[0]
    np.testing.assert_array_equal(prepare([CenterCrop(size=(4, 5))], pixels)[..., 0], expected)


def test_center_crop_does_not_invent_pixels():
    with pytest.raises(DataError, match="found an image of 4 x 9, expected at least 5 x 5; put a resize step before"):
        prepare([CenterCrop(size=(5, 5))], random_image(4, 9))


# --- arithmetic -------------------------------------------------------------------------------------------------------

STEPS = (Scale(), Normalize((0.5, 0.25, 0.1), (0.2, 0.3, 0.4)), Layout("CHW"))


def test_arithmetic_is_the_formula_in_float32():
    batch = random_image(2, 4, 5, 3)
    scaled = batch.astype(np.float32) * np.float32(1 / 255)
    expected = (scaled - np.float32([0.5, 0.25, 0.1])) / np.float32([0.2, 0.3, 0.4])
    found = apply_arithmetic(STEPS, batch)
    assert found.dtype == np.float32
    assert found.flags.c_contiguous
    np.testing.assert_array_equal(found, expected.transpose(0, 3, 1, 2))


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 9), st.sampled_from([np.uint8, np.float32, np.float64, np.int64]))
def test_a_sample_does_not_depend_on_its_batch(n, dtype):
    batch = random_image(n, 6, 5, 3).astype(dtype)
    before = batch.copy()
    together = apply_arithmetic(STEPS, batch)
    for row in range(n):
        np.testing.assert_array_equal(together[row], preprocess(STEPS, batch[row]))
    np.testing.assert_array_equal(batch, before)


def test_layouts_and_the_channel_axis():
    grey = random_image(2, 4, 5)
    assert apply_arithmetic([Layout("CHW")], grey).shape == (2, 1, 4, 5)
    assert apply_arithmetic([Layout("HWC")], grey).shape == (2, 4, 5, 1)
    assert apply_arithmetic([Layout("flat")], grey).shape == (2, 20)
    assert apply_arithmetic([], grey).shape == (2, 4, 5)
    assert preprocess([Layout("CHW")], grey[0]).shape == (1, 4, 5)
    assert preprocess([Resize(size=(3, 3)), Layout("flat")], grey[0]).shape == (9,)
    assert preprocess([Normalize((1.0,) * 7, (2.0,) * 7)], np.ones(7)).tolist() == [0.0] * 7


def test_flat_keeps_the_order_of_the_pixels():
    image = random_image(2, 3, 3)
    np.testing.assert_array_equal(preprocess([Layout("flat")], image), image.ravel().astype(np.float32))


def test_steps_from_json_do_the_whole_way():
    steps = parse_steps(
        [
            {"op": "decode"},
            {"op": "to_rgb"},
            {"op": "resize", "size": [8, 8]},
            {"op": "center_crop", "size": [6, 6]},
            {"op": "scale"},
            {"op": "layout", "to": "CHW"},
        ]
    )
    pixels = random_image(20, 30, 3)
    expected = pillow_resize(pixels, 8, 8, "bilinear")[1:7, 1:7].transpose(2, 0, 1) * np.float32(1 / 255)
    np.testing.assert_array_equal(preprocess(steps, encoded(Image.fromarray(pixels))), expected)


def test_the_order_of_the_steps_is_checked():
    steps = (Decode(), Resize(size=4), Scale(), Layout())
    assert split_steps(steps) == (steps[:2], steps[2:])
    with pytest.raises(RecipeError, match=r"'resize' stands after 'scale'; expected decode, .*Move 'resize' up"):
        split_steps([Scale(), Resize(size=4)])
    with pytest.raises(RecipeError, match="'decode' stands after 'to_rgb'; move it to the first place"):
        split_steps([ToRgb(), Decode()])


@pytest.mark.parametrize(
    ("steps", "batch", "error", "text"),
    [
        ([Normalize((0.0, 0.0), (1.0,))], np.ones((2, 3)), DataError, "2 mean and 1 std for a last axis of 3"),
        ([Normalize("train", "train")], np.ones((2, 3)), RecipeError, '"train" stands where numbers were expected'),
        ([Layout("CHW")], np.ones((2, 3)), DataError, r"layout CHW: found a batch of shape \(2, 3\), expected images"),
        ([Resize(size=3)], np.ones((2, 3)), RecipeError, "'resize' is not an arithmetic step"),
        ([], np.float32(1), DataError, "found a single number, expected a batch"),
    ],
)
def test_arithmetic_refusals(steps, batch, error, text):
    with pytest.raises(error, match=text):
        apply_arithmetic(steps, batch)


@pytest.mark.parametrize(
    ("steps", "raw", "text"),
    [
        ([], np.array(["a"]), "found an array of <U1, expected uint8 or floating point numbers"),
        ([], np.array(3.0), r"found an array of shape \(\), expected at least one number"),
        ([], np.zeros((0, 3)), r"found an array of shape \(0, 3\)"),
        ([ToGrey()], np.zeros((2, 2, 2, 2)), r"shape \(2, 2, 2, 2\), expected an image \(H, W\) or \(H, W, C\)"),
    ],
)
def test_arrays_that_are_no_samples(steps, raw, text):
    with pytest.raises(DataError, match=text):
        prepare(steps, raw)


def test_numbers_keep_bytes_and_become_float32_otherwise():
    for dtype, kept in ((np.uint8, np.uint8), (np.int64, np.float32), (np.float64, np.float32), (bool, np.float32)):
        assert prepare([], np.ones(3, dtype)).dtype == kept
