import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fgnet.volumes.errors import GeometryError
from fgnet.volumes.geometry import Box, Triple, parse_roi, parse_triple

quick = settings(max_examples=50, deadline=None)
triples = st.tuples(*[st.integers(-20, 20)] * 3)
extents = st.tuples(*[st.integers(0, 12)] * 3)


@st.composite
def boxes(draw: st.DrawFn) -> Box:
    start, extent = draw(triples), draw(extents)
    return Box(start, tuple(a + b for a, b in zip(start, extent, strict=True)))


def test_slices_of_a_box_cut_out_its_shape_and_size() -> None:
    box = Box((1, 2, 3), (4, 4, 9))
    cut = np.zeros((10, 10, 10))[box.slices]
    assert cut.shape == box.shape == (3, 2, 6)
    assert cut.size == box.size == 36


def test_box_turns_numpy_integers_into_plain_ones() -> None:
    box = Box(tuple(np.array([0, 0, 0])), tuple(np.array([1, 2, 3])))
    assert all(type(value) is int for value in (*box.start, *box.stop))
    assert box == Box.from_shape((1, 2, 3))
    assert hash(box) == hash(Box.from_shape((1, 2, 3)))


@quick
@given(boxes(), boxes())
def test_intersection_holds_exactly_the_voxels_of_both(a: Box, b: Box) -> None:
    canvas = np.zeros((80, 80, 80), np.uint8)
    for box in (a, b):
        canvas[box.shift((40, 40, 40)).slices] += 1
    both = a.intersect(b)
    assert both.size == int((canvas == 2).sum())
    assert both.size == b.intersect(a).size
    if both.size:
        assert (canvas[both.shift((40, 40, 40)).slices] == 2).all()


@quick
@given(boxes(), boxes())
def test_a_box_contains_what_its_intersection_leaves_whole(a: Box, b: Box) -> None:
    assert a.contains(b) == (a.intersect(b).size == b.size)
    assert a.contains(a.intersect(b))


@quick
@given(boxes(), triples)
def test_shifting_there_and_back_changes_nothing(box: Box, by: Triple) -> None:
    there = box.shift(by)
    assert there.shape == box.shape
    assert there.shift(tuple(-step for step in by)) == box


@quick
@given(boxes(), extents)
def test_growing_by_a_halo_adds_it_on_both_sides(box: Box, halo: Triple) -> None:
    grown = box.grow(halo)
    assert grown.contains(box)
    assert grown.shape == tuple(n + 2 * h for n, h in zip(box.shape, halo, strict=True))


@pytest.mark.parametrize(
    ("start", "stop"), [((0, 0, 5), (1, 1, 4)), ((0, 0), (1, 1)), ((0, 0, 0.5), (1, 1, 1)), (None, (1, 1, 1))]
)
def test_box_refuses_bounds_that_make_no_sense(start: object, stop: object) -> None:
    with pytest.raises(GeometryError):
        Box(start, stop)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "box"),
    [
        ("0:4,1:5,2:6", Box((0, 1, 2), (4, 5, 6))),
        (":,:,:", Box((0, 0, 0), (10, 20, 30))),
        ("5:, :7 , 3 : 4", Box((5, 0, 3), (10, 7, 4))),
    ],
)
def test_region_of_interest_leaves_open_ends_at_the_border(text: str, box: Box) -> None:
    assert parse_roi(text, (10, 20, 30)) == box


@quick
@given(boxes().filter(lambda box: box.size > 0 and min(box.start) >= 0))
def test_region_of_interest_reads_what_a_box_writes(box: Box) -> None:
    assert parse_roi(str(box), (40, 40, 40)) == box


@pytest.mark.parametrize(
    ("text", "axis", "value"), [("0:11,:,:", "z", "11"), (":,-1:4,:", "y", "-1"), (":,:,31:", "x", "31")]
)
def test_region_outside_the_volume_names_axis_value_and_extent(text: str, axis: str, value: str) -> None:
    with pytest.raises(GeometryError, match=f"axis {axis}: {value} lies outside") as caught:
        parse_roi(text, (10, 20, 30))
    assert f"0:{dict(zip('zyx', (10, 20, 30), strict=True))[axis]} along {axis}" in str(caught.value)


@pytest.mark.parametrize("text", ["", "0:1", "0:1,0:1", "a:b,:,:", "3,:,:", "4:4,:,:", "5:4,:,:", "0:1:2,:,:"])
def test_malformed_or_empty_region_is_refused(text: str) -> None:
    with pytest.raises(GeometryError):
        parse_roi(text, (10, 20, 30))


def test_triple_is_read_from_text() -> None:
    assert parse_triple(" 8, 128,128", "patch") == (8, 128, 128)


@pytest.mark.parametrize("text", ["", "8", "8,128", "8,x,128", "8,1.5,2", "0,1,1", "-1,2,2", "1,2,3,4"])
def test_text_that_is_no_positive_triple_is_refused_by_name(text: str) -> None:
    with pytest.raises(GeometryError, match="patch"):
        parse_triple(text, "patch")
