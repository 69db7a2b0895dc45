"""The house: floors, rooms and doors, read from the imports themselves."""

import ast
import importlib
import json
import re
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from metasp_lite import settings

ROOT = settings.PROJECT_DIR
PACKAGE = ROOT / "metasp_lite"
FILES = sorted(PACKAGE.rglob("*.py"))

FLOOR = {  # of each room, as CONTRIBUTING's table has it: "| 3 | `stages`, `continual` | …"
    room: int(number)
    for number, rooms in re.findall(
        r"^\| (\d) \| ([^|]*) \|", (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"), re.MULTILINE
    )
    for room in re.findall(r"`(\w+)`", rooms)
}
ROOMS = [path.name for path in sorted(PACKAGE.iterdir()) if (path / "__init__.py").is_file()]


def name_of(file: Path) -> str:
    """Dotted name of a module below the package: ``calculus.losses``, of a face ``calculus``."""
    parts = file.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {name_of(file): file for file in FILES}


def imported_by(source: str) -> set[str]:
    """Modules of the package that ``source`` imports, wherever in it; a name that is no module counts as its module."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "write imports in full"
            below = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name.removeprefix("metasp_lite.") in MODULES else str(node.module) for name in below}
    return {
        name.removeprefix("metasp_lite").removeprefix(".") for name in found if name.partition(".")[0] == "metasp_lite"
    }


def room_of(module: str) -> str:
    return module.partition(".")[0]


IMPORTS = {name: imported_by(file.read_text(encoding="utf-8")) for name, file in MODULES.items()}


def code_of(notebook: Path) -> str:
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    return "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")


def test_every_room_has_a_floor_and_every_floor_is_inhabited():
    assert set(FLOOR) == {room_of(module) for module in MODULES} - {""}


@pytest.mark.parametrize("module", [name for name in MODULES if name])
def test_imports_go_downwards(module):
    """``__main__`` calls commands by name; the package's own face is read by all and imports nothing."""
    others = {room_of(other) for other in IMPORTS[module]} - {room_of(module), ""}
    upwards = {other for other in others if FLOOR[other] >= FLOOR[room_of(module)]}
    assert not upwards


def test_no_circle():
    """A face stands above its room: whoever imports from inside a room waits for its face only at run time."""
    inside = {
        name: {
            other for other in others if other in MODULES and not (room_of(other) == room_of(name) and other in ROOMS)
        }
        for name, others in IMPORTS.items()
    }
    try:
        TopologicalSorter(inside).prepare()
    except CycleError as error:
        pytest.fail(f"imports go round in a circle: {' → '.join(error.args[1])}")


def test_a_circle_and_an_upward_import_would_be_noticed():
    assert imported_by("def f():\n    from metasp_lite.continual import grid, train\n") == {
        "continual.grid",
        "continual",
    }
    assert FLOOR["continual"] > FLOOR["calculus"]
    with pytest.raises(CycleError):
        TopologicalSorter({"a": {"b"}, "b": {"a"}}).prepare()


@pytest.mark.parametrize("notebook", sorted((ROOT / "notebooks").glob("*.ipynb")), ids=lambda path: path.stem)
def test_notebooks_come_in_through_the_doors(notebook):
    """From the package's own files (``settings``, ``networks``, …) or from a room's face, and only what it shows."""
    for node in ast.walk(ast.parse(re.sub(r"(?m)^\s*[%!].*$", "", code_of(notebook)))):
        if not isinstance(node, ast.ImportFrom) or room_of(str(node.module)) != "metasp_lite":
            continue
        names = {alias.name for alias in node.names}
        if node.module == "metasp_lite":
            assert names <= set(FLOOR) - set(ROOMS), f"import from the rooms, not {names}"
        else:
            room = str(node.module).removeprefix("metasp_lite.")
            assert room in ROOMS
            assert names <= set(importlib.import_module(str(node.module)).__all__)


def faces() -> dict[str, list[str]]:
    return {room: importlib.import_module(f"metasp_lite.{room}").__all__ for room in ROOMS}


def test_faces_are_small_and_show_what_there_is():
    """About a dozen names a door, a hundred in the house."""
    shown = faces()
    assert sum(map(len, shown.values())) <= 100
    for room, names in shown.items():
        assert len(names) <= 14, room
        assert len(set(names)) == len(names)
        assert all(hasattr(importlib.import_module(f"metasp_lite.{room}"), name) for name in names)
        assert not any(name.startswith("_") for name in names)


def test_rooms_and_files_stay_small():
    assert len([path for path in PACKAGE.iterdir() if path.is_file()]) <= 8
    long = {name: lines for name, file in MODULES.items() if (lines := len(file.read_text("utf-8").splitlines())) > 300}
    assert not long


def defined(file: Path) -> set[str]:
    """Names that a module defines at its top level, private ones left out."""
    names: set[str] = set()
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names |= {each.id for target in targets for each in ast.walk(target) if isinstance(each, ast.Name)}
    return {name for name in names if not name.startswith("_")}


def test_public_names_are_used_elsewhere():
    """Elsewhere in the package, in a notebook or in a test; what nobody uses outside its file has an underscore."""
    outside = [*(ROOT / "tests").rglob("*.py")]
    text = "\n".join(
        [*(path.read_text(encoding="utf-8") for path in outside), *map(code_of, ROOT.glob("notebooks/*.ipynb"))]
    )
    words_outside = set(re.findall(r"\w+", text))
    words = {name: set(re.findall(r"\w+", file.read_text(encoding="utf-8"))) for name, file in MODULES.items()}
    idle = {
        f"{module}.{name}"
        for module, file in MODULES.items()
        for name in defined(file)
        if name not in words_outside and not any(name in words[other] for other in MODULES if other != module)
    }
    assert not idle


def test_one_word_for_one_thing():
    """No public name is defined in two files, but for what every command has, what every study has, and settings."""
    homes: dict[str, list[str]] = {}
    for module, file in MODULES.items():
        for name in defined(file) - {"configure", "main", "study"}:
            homes.setdefault(name, []).append(module)
    assert not {name: modules for name, modules in homes.items() if len(modules) > 1}


def test_argparse_and_print_live_with_the_commands():
    for module, file in MODULES.items():
        if room_of(module) not in ("commands", "__main__"):
            tree = ast.parse(file.read_text(encoding="utf-8"))
            calls = [
                node.func.id
                for node in ast.walk(tree)
                if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
            ]
            assert "print" not in calls, module
            assert not re.search(r"^\s*(import|from) argparse", file.read_text(encoding="utf-8"), re.MULTILINE), module


def test_nothing_is_dropped_by_zip():
    """``strict=False`` lets what is over fall away without a word: six styles once made six curves of ten tasks."""
    assert not [name for name, file in MODULES.items() if "strict=False" in file.read_text(encoding="utf-8")]
