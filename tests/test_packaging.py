"""What the project says about itself in several files holds together, and is true of what is installed."""

import ast
import importlib.metadata
import json
import os
import pkgutil
import re
import statistics
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

import metasp_lite
from metasp_lite import settings
from metasp_lite.__main__ import COMMANDS

ROOT = settings.PROJECT_DIR
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
RUNTIME = [Requirement(text) for text in PROJECT["dependencies"]]
TEST = [Requirement(text) for text in PROJECT["optional-dependencies"]["test"]]
CONDA = yaml.safe_load((ROOT / "environment.yml").read_text())
CONDA_PYTHON, CONDA_PIP, CONDA_PIP_LIST = CONDA["dependencies"]


def ranges(requirements: list[Requirement]) -> dict[str, SpecifierSet]:
    """Version ranges by package name, spelt in one way."""
    return {canonicalize_name(requirement.name): requirement.specifier for requirement in requirements}


def third_party_imports(files: list[Path]) -> set[str]:
    """Every top-level module the files import, less the standard library, this package and the tests themselves."""
    names = set()
    for file in files:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                names |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                names.add(node.module)
    own = {"metasp_lite", "helpers"}
    checkers = {"_typeshed"}  # a type checker brings it along; nothing imports it when the code runs
    return {name.partition(".")[0] for name in names} - set(sys.stdlib_module_names) - own - checkers


def undeclared(files: list[Path], requirements: list[Requirement]) -> set[str]:
    """Modules the files import that come from no declared package."""
    packages, declared = importlib.metadata.packages_distributions(), set(ranges(requirements))
    return {
        module
        for module in third_party_imports(files)
        if not {canonicalize_name(name) for name in packages.get(module, [])} & declared
    }


def test_conda_environment_asks_for_what_pyproject_asks_for():
    """Conda's channels are not reached here, so the file is not solved but held against pyproject."""
    pip_list = CONDA_PIP_LIST["pip"]
    assert pip_list[-1] == "-e ."
    assert ranges([Requirement(text) for text in pip_list[:-1]]) == ranges(RUNTIME + TEST)
    assert len(pip_list) == len(RUNTIME) + len(TEST) + 1
    assert (CONDA["name"], CONDA["channels"], CONDA_PIP) == (PROJECT["name"], ["conda-forge"], "pip")


def test_conda_environment_asks_for_the_python_that_pyproject_requires():
    assert Requirement(CONDA_PYTHON).name == "python"
    assert Requirement(CONDA_PYTHON).specifier == SpecifierSet(PROJECT["requires-python"])


@pytest.mark.parametrize("requirement", RUNTIME + TEST, ids=lambda requirement: requirement.name)
def test_installed_version_is_in_the_declared_range(requirement):
    assert requirement.specifier.contains(importlib.metadata.version(requirement.name), prereleases=True)


PINS = [Requirement(line) for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]


@pytest.mark.parametrize("requirement", RUNTIME + TEST, ids=lambda requirement: requirement.name)
def test_constraints_pin_every_requirement_within_its_range(requirement):
    pins = [pin for pin in PINS if canonicalize_name(pin.name) == canonicalize_name(requirement.name)]
    assert pins
    for pin in pins:
        ((operator, version),) = [(each.operator, each.version) for each in pin.specifier]
        assert operator == "=="
        assert requirement.specifier.contains(version)


def test_this_python_is_one_that_is_required():
    assert SpecifierSet(PROJECT["requires-python"]).contains(".".join(map(str, sys.version_info[:3])))


def test_makefile_refuses_the_pythons_that_pyproject_refuses():
    """The Makefile's own list of versions begins where ``requires-python`` begins."""
    assert PROJECT["requires-python"] == ">=3.11"
    assert "3.1[1-9] | 3.[2-9][0-9]) ;;" in (ROOT / "Makefile").read_text()


def test_every_module_the_package_imports_is_declared():
    assert undeclared(sorted((ROOT / "metasp_lite").rglob("*.py")), RUNTIME) == set()


def test_every_module_the_tests_import_is_declared():
    files = [*(ROOT / "tests").rglob("*.py"), ROOT / "notebooks" / "conftest.py"]
    assert undeclared(files, RUNTIME + TEST) == set()


def test_an_undeclared_import_is_noticed(tmp_path):
    """Also inside a function, and with the module's name unlike its package's (PIL comes from pillow)."""
    file = tmp_path / "module.py"
    file.write_text(
        "import os\nfrom PIL import Image\ndef f():\n    from yaml import safe_load\n    import nowhere.at_all\n"
    )
    assert undeclared([file], RUNTIME) == {"yaml", "nowhere"}


def test_everything_in_the_package_is_packaged():
    """A folder of code without ``__init__.py``, or a file that is no code, would be missing from an installed copy."""
    tool = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    files = [file for file in (ROOT / "metasp_lite").rglob("*") if file.is_file() and file.suffix != ".pyc"]
    code = {file.parent.relative_to(ROOT) for file in files if file.suffix == ".py"}
    assert tool["packages"]["find"] == {"include": ["metasp_lite*"]}  # setuptools takes folders with ``__init__.py``
    assert all((ROOT / folder / "__init__.py").is_file() for folder in code)
    named = {
        ROOT.joinpath(*package.split("."), name) for package, names in tool["package-data"].items() for name in names
    }
    assert {file for file in files if file.suffix != ".py"} == named


def test_version_is_the_same_everywhere():
    assert PROJECT["version"] == metasp_lite.__version__ == importlib.metadata.version("metasp_lite")


def test_the_citation_is_of_this_project_and_of_both_papers():
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert (cited["cff-version"], cited["title"]) == ("1.2.0", PROJECT["name"])
    assert (cited["version"], cited["license"]) == (PROJECT["version"], PROJECT["license"])
    assert cited["abstract"].startswith(PROJECT["description"])
    assert [paper["year"] for paper in cited["references"]] == [2022, 2020]


def test_readme_names_both_commands_and_ci_runs_the_second():
    readme = [line.strip() for line in (ROOT / "README.md").read_text().splitlines()]
    assert any(line.startswith("make tour") for line in readme)
    assert any(line.startswith("make test") for line in readme)
    ci = ROOT / ".ci" / "run"
    assert ci.read_text().splitlines()[-1] == "make test"
    assert os.access(ci, os.X_OK)


def readme_row(start: str) -> list[str]:
    """Cells of the one README table row whose first cell begins so."""
    rows = [line for line in (ROOT / "README.md").read_text().splitlines() if line.startswith(f"| {start}")]
    assert len(rows) == 1, f"{len(rows)} rows begin with {start!r}"
    return [cell.strip() for cell in rows[0].strip("|").split("|")]


def test_readme_quotes_the_recorded_run_time_of_every_notebook():
    runs = json.loads((ROOT / "data/results/tour.json").read_text())["runs"]
    assert {run["notebook"] for run in runs} == {path.stem for path in (ROOT / "notebooks").glob("*.ipynb")}
    for run in runs:
        assert readme_row(f"[{run['notebook'][:2]}]")[-1] == f"{run['wall_seconds']} s"


def test_readme_quotes_the_recorded_benchmark():
    runs = json.loads((ROOT / "data/results/bench/toy.json").read_text())["runs"]
    rows = {
        "exact influence": "exact_cpu_seconds",
        "… extra memory": "exact_extra_mib",
        "conjugate gradients: right signs": "cg_signs_right_after_20_products",
        "… products to 990": "cg_products_to_990",
        "… products to all": "cg_products_to_1000",
        "… CPU seconds to all": "cg_cpu_seconds_to_1000_median",
    }
    for start, key in rows.items():
        values = [run[key] for run in runs]
        assert readme_row(start)[-1] == f"{min(values):g} to {max(values):g}", key


def test_readme_quotes_the_recorded_comparison_with_other_libraries():
    """A row for each library and method that was run; the ratios that the text names."""
    found = json.loads((ROOT / "data/results/bench/peers.json").read_text())
    methods = {"KFAC-preconditioned CG": "conjugate gradients after K-FAC", "EKFAC": "EK-FAC"}
    seconds = {}
    for run in found["runs"]:
        ours = run["library"] == "metasp_lite"
        library = "this package" if ours else f"{run['library']} {run['version']}"
        method = methods.get(run["method"], run["method"])
        seconds[library, method] = run["cpu_seconds_median"]
        assert readme_row(f"{library}, {method} |")[1:] == [
            f"{run['cpu_seconds_median']:.2f}",
            str(run["extra_mib"]),
            str(run["signs_right"]),
            *(f"{run[key]:.2f}" for key in ("balanced_accuracy", "pearson", "slope")),
            str(run["lines"]),
        ]
        assert run["constant_guess"] == 914
    fastest = seconds["this package", "conjugate gradients after K-FAC"]
    assert (
        min(seconds["dattri 0.3.0", "conjugate gradients"], seconds["pyDVL 0.10.0", "conjugate gradients"])
        >= 6 * fastest
    )
    assert found["obtained_with"]["date"] == "2026-11-28"
    assert found["obtained_with"]["versions"]["torch"] == "2.14.1"


NETWORKS = ("lite-cnn", "resnet18-20", "resnet18-64")
STEPS = {
    (row["variant"], row["network"], row["n"], row["v"]): row
    for row in json.loads((ROOT / "data/results/bench/step.json").read_text())
}


def step_cost(variant: str, key: str, network: str = "lite-cnn", n: int = 64, v: int = 100) -> float:
    """What the benchmark stored of one step."""
    return STEPS[variant, network, n, v][key]


def metasp_share(key: str, *case: str | int, rival: str = "oracle") -> float:
    """MetaSP's cost over the rival's."""
    return step_cost("metasp", key, *case) / step_cost(rival, key, *case)


@pytest.mark.parametrize("network", NETWORKS)
def test_readme_quotes_the_recorded_cost_of_a_step(network):
    rivals = ("oracle", "oracle-shared")
    costs = {
        key: [step_cost(variant, key, network) for variant in ("er", "metasp", *rivals)]
        for key in ("counted_ratio_to_er", "cpu_ratio_to_er", "peak_extra_mib")
    }
    assert readme_row(f"`{network}`")[1:] == [
        " / ".join(f"{ratio:.2f}" for ratio in costs["counted_ratio_to_er"][1:]),
        " / ".join(f"{ratio:.1f}" for ratio in costs["cpu_ratio_to_er"][1:]),
        " / ".join(f"{mib:.0f}" for mib in costs["peak_extra_mib"]),
        *(
            ", ".join(f"{metasp_share(key, network, rival=rival):.2f}" for key in ("cpu_seconds", "peak_extra_mib"))
            for rival in rivals
        ),
    ]


@pytest.mark.parametrize(
    ("start", "goal", "values"),
    [
        ("at most 4.8 ER steps", 4.8, [step_cost("metasp", "counted_ratio_to_er", network) for network in NETWORKS]),
        ("at most 0.6 of the oracle's CPU", 0.6, [metasp_share("cpu_seconds", network) for network in NETWORKS]),
        ("at most 0.6 of the oracle's memory", 0.6, [metasp_share("peak_extra_mib", network) for network in NETWORKS]),
        ("… with ordinary", 0.6, [metasp_share("peak_extra_mib_ordinary_malloc", network) for network in NETWORKS]),
    ],
)
def test_readme_says_which_goals_a_step_meets(start, goal, values):
    (said,) = readme_row(start)[1:]
    met, count, *range_ = map(float, re.findall(r"\d+(?:\.\d+)?", said))
    assert (met, count) == (sum(value <= goal for value in values), len(values))
    assert range_ in ([], [round(min(values), 2), round(max(values), 2)])


def test_readme_says_how_a_step_grows():
    cases = [tuple(map(int, cell.split(", "))) for cell in readme_row("n, v")[1:]]
    counted, shares = readme_row("ER steps counted")[1:], readme_row("share of CPU time")[1:]
    for (n, v), steps, share in zip(cases, counted, shares, strict=True):
        assert steps == f"{step_cost('metasp', 'counted_ratio_to_er', 'lite-cnn', n, v):.1f}"
        assert share == f"{metasp_share('cpu_seconds', 'lite-cnn', n, v):.2f}"
    assert set(cases) == {(n, v) for _, network, n, v in STEPS if network == "lite-cnn"}


@pytest.mark.parametrize("network", ["lite-cnn", "resnet18-20"])
def test_readme_quotes_the_recorded_speed_of_training(network):
    stored = json.loads((ROOT / "data/results/bench/train.json").read_text())
    rows = {row["variant"]: row for row in stored if row["network"] == network}
    assert readme_row(f"training `{network}`")[1:] == [
        f"{rows['er']['ratio_to_bare']:.2f}",
        f"{rows['metasp']['share_of_er_step']:.1f}",
        f"{100 * rows['augmentation']['share_of_er_step']:.1f} %",
    ]


ENDS: dict[tuple[str, str | None, float], dict[int, float | None]] = {}
for row in json.loads((ROOT / "data/results/variants/split-fashion-mnist.json").read_text(encoding="utf-8")):
    ENDS.setdefault((row["method"], row["variant"], row["lr"]), {})[row["seed"]] = row["a_inf_class_incremental"]


def percent(values: list[float]) -> str:
    return f"{100 * statistics.mean(values):.1f} ± {100 * statistics.stdev(values):.1f}" if values else "–"


@pytest.mark.parametrize(("method", "variant"), sorted({key[:2] for key in ENDS}, key=str))
def test_readme_quotes_the_stored_study_of_the_weights(method, variant):
    cells = []
    for rate in (0.1, 0.03):
        ends = list(ENDS[method, variant, rate].values())
        finished = [end for end in ends if end is not None]
        cells += [percent(finished), f"{len(finished)} of {len(ends)}"]
    assert readme_row(f"`{method}`, {variant or 'plain'}")[1:] == cells


def test_readme_quotes_the_gain_of_metasp_pair_by_pair():
    gains = [
        [metasp - ENDS["er-late", None, rate][seed] for seed, metasp in ENDS["metasp", "official", rate].items()]
        for rate in (0.1, 0.03)
    ]
    assert readme_row("gain of MetaSP")[1::2] == [percent(gain) for gain in gains]


def test_every_command_that_the_documents_name_exists():
    """``python -m metasp_lite NAME``, ``make NAME``, and files of the project in backticks."""
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    for name in ("README.md", "CONTRIBUTING.md", "data/README.md"):
        text = (ROOT / name).read_text(encoding="utf-8")
        for command in re.findall(r"python -m metasp_lite ([a-z]+(?:-[a-z]+)*)", text):
            assert command in COMMANDS, (name, command)
        for target in re.findall(r"(?:^|`)make ([a-z-]+)", text, re.MULTILINE):
            assert target in targets, (name, target)
        for path in re.findall(r"`((?:notebooks|tests|data|metasp_lite)/[\w./-]+)`", text):
            assert "NAME" in path or (ROOT / path).exists(), (name, path)


def test_the_edit_map_names_what_is_there():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    table = text[text.index("## To add") : text.index("## Commands")]
    for path in re.findall(r"`([\w./]+\.py)`", table):
        if "NAME" not in path:
            assert any((folder / path).is_file() for folder in (ROOT, ROOT / "metasp_lite")), path


def resolves(name: str) -> bool:
    """Whether a dotted name, ``metasp_lite.…``, is a module, or something in one."""
    try:
        pkgutil.resolve_name(name)
    except (ImportError, AttributeError):
        return False
    return True


def test_every_name_of_the_package_that_is_written_somewhere_exists():
    """In the documents, in the notebooks, and in docstrings and messages of the package."""
    files = [*ROOT.glob("*.md"), ROOT / "data" / "README.md", *ROOT.glob("notebooks/*.ipynb")]
    files += sorted((ROOT / "metasp_lite").rglob("*.py"))
    for file in files:
        for name in set(re.findall(r"\bmetasp_lite(?:\.[a-z_A-Z]\w*)+", file.read_text(encoding="utf-8"))):
            assert resolves(name), (file.name, name)
    assert not resolves("metasp_lite.functional.Curvature")
