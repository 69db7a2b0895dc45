"""The map of the course: who stands where, which arrows are drawn, and that the real course can be read in order."""

from matplotlib.patches import Rectangle

from metasp_lite import settings
from metasp_lite.course import guide
from metasp_lite.course.cards import Card


def card(number, *needs, minutes=20, seconds=14):
    return Card(f"{number}-a.ipynb", number, f"Title {number}", "Why?", needs, minutes, seconds)


COURSE = [card("01"), card("02", "01"), card("03", "01", "02"), card("04"), card("05", "02", "04"), card("06", "05")]


def test_a_need_that_another_need_has_is_not_drawn_twice():
    needs = {"01": (), "02": ("01",), "03": ("02",), "04": (), "05": ("02", "04"), "06": ("05",)}
    assert guide.direct_needs(COURSE) == needs


def test_every_arrow_goes_to_the_right_and_no_two_boxes_overlap():
    where = guide.positions(COURSE)
    assert {number: column for number, (column, _) in where.items()} == {
        "01": 0, "04": 0, "02": 1, "03": 2, "05": 2, "06": 3,
    }  # fmt: skip
    assert where["01"][1] > where["04"][1]
    assert where["03"][1] > where["05"][1]  # 04, below, is among the needs of 05
    assert len(set(where.values())) == len(COURSE)


def test_the_map_has_a_box_and_its_times_for_each_notebook_and_an_arrow_for_each_direct_need():
    course = [*COURSE, card("07", "06", minutes=None, seconds=None)]
    (ax,) = guide.course_map(course).axes
    assert sum(isinstance(patch, Rectangle) for patch in ax.patches) == len(course)
    words = [text.get_text() for text in ax.texts]
    assert [word for word in words if word in {one.number for one in course}] == [one.number for one in course]
    assert words.count("20 min · runs 14 s") == 6
    assert words.count("Title 07") == 1
    arrows = [text for text in ax.texts if getattr(text, "arrow_patch", None)]
    assert len(arrows) == sum(map(len, guide.direct_needs(course).values()))
    assert all(arrow.xy[0] > arrow.xyann[0] for arrow in arrows)
    left, right = ax.get_xlim()
    assert all(left < x < right for x, _ in guide.positions(course).values())


def test_the_course_can_be_read_in_the_order_of_its_numbers():
    course = guide.cards()
    stems = {path.stem for path in (settings.PROJECT_DIR / "notebooks").glob("*.ipynb")} - {"00-start-here"}
    assert {one.file.removesuffix(".ipynb") for one in course} == stems
    before = set()
    for one in course:
        assert one.question
        assert one.minutes
        assert set(one.needs) <= before
        before.add(one.number)
