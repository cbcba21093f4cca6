"""Pixels, masks and boxes agree with each other and with the scene graph."""

import dataclasses

import numpy as np
import pytest

from big_mm.data import scenes
from big_mm.data.scenes import rendering, sampling, world


def single(shape, colour="blue", texture="solid", radius=0.25, x=0.5, y=0.5, angle=0.0, tone=0):
    rgb = sampling.nominal_rgb(colour)
    item = scenes.Object(shape, colour, "large", texture, x, y, radius, angle, rgb, 0.6, 0.3)
    background = world.Background("dark", "plain", (tone,) * 3, (tone,) * 3, 0.0)
    return scenes.Scene((item,), background, 0.0, 0)


@pytest.mark.parametrize("size", [48, 96])
def test_masks_and_boxes_agree(size):
    for index in range(100):
        scene = scenes.sample("train", 0, index).scene
        painted = scenes.render(scene, size)
        boxes = painted.boxes(len(scene.objects)) * size
        for i, item in enumerate(scene.objects):
            rows, columns = np.nonzero(painted.labels == i + 1)
            box = columns.min(), rows.min(), columns.max() + 1, rows.max() + 1
            np.testing.assert_allclose(boxes[i], box)
            # Nothing lies farther from the centre than the outline reaches.
            far = np.hypot(columns + 0.5 - item.x * size, rows + 0.5 - item.y * size)
            assert far.max() <= sampling.REACH * item.radius * size + 1


def test_every_object_stays_mostly_visible():
    for index in range(200):
        scene = scenes.sample("train", 1, index).scene
        visible = scenes.render(scene, 64).labels
        for i, item in enumerate(scene.objects):
            alone = scenes.render(dataclasses.replace(scene, objects=(item,)), 64).labels
            assert (visible == i + 1).sum() > 0.75 * (alone == 1).sum()


def test_pixels_under_a_mask_have_the_colour_of_the_object():
    """The upper half of a mask's pixels (textures are darker) is nearest to its own colour."""
    nominal = np.array([sampling.nominal_rgb(colour) for colour in world.COLOURS])
    right = total = 0
    for index in range(200):
        scene = scenes.sample("train", 2, index).scene
        painted = scenes.render(scene, 64)
        for i, item in enumerate(scene.objects):
            pixels = painted.image[painted.labels == i + 1].astype(float)
            bright = pixels[pixels.max(1) >= np.quantile(pixels.max(1), 0.5)]
            nearest = np.abs(nominal - np.median(bright, 0)).sum(1).argmin()
            right += world.COLOURS[nearest] == item.colour
            total += 1
    assert right / total > 0.99


def test_background_is_where_the_mask_is_zero():
    scene = single("circle", tone=200)
    painted = scenes.render(scene, 64)
    assert (painted.image[painted.labels == 0].max(-1) >= 200).all()


def test_a_disc_covers_its_area():
    scene = single("circle")
    painted = scenes.render(scene, 96)
    expected = np.pi * (0.92 * 0.25 * 96) ** 2
    assert (painted.labels == 1).sum() == pytest.approx(expected, rel=0.02)
    # Anti-aliasing keeps the light as well as the area: coverage sums to it.
    blue = painted.image[..., 2].sum() / sampling.nominal_rgb("blue")[2]
    assert blue == pytest.approx(expected, rel=0.02)


def test_edges_are_soft():
    channel = scenes.render(single("circle"), 48).image[..., 2]
    top = sampling.nominal_rgb("blue")[2]
    assert ((channel > 0.1 * top) & (channel < 0.9 * top)).sum() > 20


def test_shapes_differ_even_when_small():
    """In pixels, a small turned shape is nearest to the same shape turned otherwise."""

    def pixels(shape, angle):
        return scenes.render(single(shape, radius=0.115, angle=angle), 48).image.astype(float)

    turns = np.linspace(-0.35, 0.35, 5)
    known = [(shape, pixels(shape, angle)) for shape in world.SHAPES for angle in turns]
    for shape in world.SHAPES:
        for angle in (turns[:-1] + turns[1:]) / 2:
            seen = pixels(shape, angle)
            assert min(known, key=lambda item: np.abs(item[1] - seen).sum())[0] == shape  # noqa: B023


def test_outlines_stay_within_reach():
    for shape in world.SHAPES:
        for contour in rendering._outline(shape):
            assert np.hypot(*contour.T).max() <= sampling.REACH + 1e-9


@pytest.mark.parametrize("texture", ["striped", "dotted"])
def test_textures_show_inside_a_rim(texture):
    plain = scenes.render(single("square"), 96)
    textured = scenes.render(single("square", texture=texture), 96)
    np.testing.assert_array_equal(plain.labels, textured.labels)
    darker = textured.image[..., 2] < 0.5 * plain.image[..., 2].max()
    share = (darker & (plain.labels == 1)).sum() / (plain.labels == 1).sum()
    assert 0.1 < share < 0.5


def test_later_objects_lie_in_front():
    (back,) = single("square", "red").objects
    (front,) = single("circle", "blue", radius=0.1).objects
    scene = dataclasses.replace(single("square"), objects=(back, front))
    painted = scenes.render(scene, 64)
    assert painted.labels[32, 32] == 2
    np.testing.assert_array_equal(painted.image[32, 32], front.rgb)
