"""What a grid asks for: the product that a file describes, each run with the command that does it alone."""

import shlex
from pathlib import Path

import pytest
from helpers.tiny_stream import make_folder

from metasp_lite import __main__ as program
from metasp_lite import settings
from metasp_lite.continual import plan, training
from metasp_lite.continual.methods import METHODS
from metasp_lite.continual.run import Run


@pytest.fixture(autouse=True)
def lite(monkeypatch):
    monkeypatch.delenv("METASP_PROFILE", raising=False)


def description(**changed: object) -> dict[str, object]:
    return {"streams": ["split-fashion-mnist"], "methods": ["er", "metasp"], "seeds": [1, 2], **changed}


def test_a_grid_is_the_product_and_a_method_without_memory_runs_once(tmp_path):
    jobs = plan.jobs(
        description(
            methods=["fine-tune", "metasp"],
            memory=[50, 100],
            set={"epochs": 3, "late_epochs": 1, "metasp": {"lr": 0.05}},
        ),
        tmp_path,
    )
    assert sorted(job.name for job in jobs) == [
        "split-fashion-mnist_fine-tune_seed-1",
        "split-fashion-mnist_fine-tune_seed-2",
        "split-fashion-mnist_metasp_memory-100_seed-1",
        "split-fashion-mnist_metasp_memory-100_seed-2",
        "split-fashion-mnist_metasp_memory-50_seed-1",
        "split-fashion-mnist_metasp_memory-50_seed-2",
    ]
    for job in jobs:
        assert job.out == tmp_path / job.name
        assert job.run.recipe.epochs == 3
        assert job.run.recipe.lr == (0.05 if job.run.method == "metasp" else 0.1)
        assert getattr(job.run.settings, "late_epochs", 1) == 1
    assert [job.run.settings.memory for job in plan.jobs(description(), tmp_path)] == [200] * 4  # the stream's own


def test_the_command_of_a_job_is_the_job(tmp_path, monkeypatch):
    """What the report says to type makes the very same run."""
    jobs = plan.jobs(
        description(memory=[50], set={"flip": True, "lr": 0.05, "metasp": {"pseudo_steps": 2}}), tmp_path / "a b", 2
    )
    seen = []
    entry = {"a_inf": 0.5, "bwt": None}
    result = dict.fromkeys(("class_incremental", "task_incremental"), entry)

    def train(run: Run, out: Path, *, threads: int, **_: object) -> dict[str, object]:
        seen.append((run, out, threads))
        return result

    monkeypatch.setattr(training, "train", train)
    for job in jobs:
        python, dash, name, *words = shlex.split(job.command)
        assert (python, dash, name) == ("python", "-m", "metasp_lite")
        assert program.main(words) == 0
    assert seen == [(job.run, job.out, 2) for job in jobs]


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"seeds": 3}, "seeds must be a list of whole numbers"),
        ({"seeds": [True]}, "seeds must be a list of whole numbers"),
        ({"methods": []}, "methods must be a list of names"),
        ({"memory": [0]}, "memory=0"),
        ({"method": ["er"]}, "'method' means nothing here"),
        ({"profile": "huge"}, "profile='huge' must be one of: lite, full"),
        ({"methods": ["sgd"]}, "there is no method 'sgd'"),
        ({"streams": ["nowhere"]}, "there is no stream 'nowhere'"),
        ({"set": 3}, "set must be a table"),
        ({"set": {"pseudo_stepz": 2}}, "no method of this grid has a setting 'pseudo_stepz'"),
        ({"set": {"gdumb": {"epochs": 2}}}, r"\[set.gdumb\] is for no stream or method of this grid"),
        ({"set": {"er": {"pseudo_steps": 2}}}, "er on split-fashion-mnist has no setting 'pseudo_steps'"),
        ({"memory": [5], "set": {"memory": 6}}, r"memory is asked for twice: as a list, and in \[set\]; give one"),
        ({"memory": [5], "set": {"er": {"memory": 6}}}, r"memory is asked for twice: as a list, and in \[set\.er\]"),
        ({"set": {"epochs": 2.0}}, r"epochs=2\.0 must be a whole number"),
        ({"set": {"epochs": True}}, "epochs=True must be a whole number"),
        ({"seeds": [1.0]}, "seeds must be a list of whole numbers"),
        ({"streams": [""]}, "the stream's name is empty"),
        ({"set": {"epochs": "many"}}, "epochs=many must be a whole number"),
        ({"vary": 3}, "vary must be a table of lists"),
        ({"vary": {"lr": 0.1}}, r"\[vary\] lr=0.1 must be a list of values"),
        ({"vary": {"lr": []}}, r"\[vary\] lr=\[\] must be a list of values"),
        ({"vary": {"lr": [[0.1]]}}, r"must be a list of values"),
        ({"vary": {"lr": [0.1, 0.1]}}, r"names a value twice"),
        ({"vary": {"lr": [0.1]}, "set": {"lr": 0.1}}, r"lr is asked for twice: in \[vary\], and in set; give one"),
        ({"vary": {"memory": [5]}}, r"memory is asked for twice: in \[vary\], and in memory"),
        ({"vary": {"lrr": [0.1]}}, "no method of this grid has a setting 'lrr'"),
        ({"vary": {"lr": ["fast"]}}, "lr=fast must be a finite number"),
        ({"arms": 3}, "arms must be tables, one for each arm"),
        ({"arms": {"half": 3}}, "arms must be tables, one for each arm"),
        ({"arms": {"half": {"gamma": 0.5}}, "methods": ["half"]}, r"\[arms.half\] has no method"),
        ({"arms": {"half": {"method": "sgd"}}, "methods": ["half"]}, "there is no method 'sgd'"),
        ({"arms": {"half": {"method": 3}}, "methods": ["half"]}, "there is no method 3"),
        ({"arms": {"half": {"method": "metasp"}}}, r"\[arms.half\] is not among the methods of this grid: er, metasp"),
        ({"arms": {"er": {"method": "metasp"}}}, r"\[arms.er\] has the name of a method"),
        ({"arms": {"a/b": {"method": "er"}}, "methods": ["a/b"]}, r"\[arms.a/b\] becomes part of a folder's name"),
        ({"arms": {"half": {"method": "er", "gamma": 0.5}}, "methods": ["half"]}, "er on split-fashion-mnist has no"),
        (
            {"arms": {"half": {"method": "er", "memory": 5}}, "methods": ["half"], "memory": [6]},
            r"memory is asked for twice: as a list, and in \[arms.half\]",
        ),
    ],
)
def test_a_grid_that_asks_for_what_is_not_there_runs_nothing(changed, sentence, tmp_path):
    with pytest.raises(ValueError, match=sentence):
        plan.jobs(description(**changed), tmp_path)


def test_the_example_in_the_help_is_a_grid(tmp_path):
    path = tmp_path / "grid.toml"
    path.write_text(settings.GRID_EXAMPLE.read_text(encoding="utf-8"), encoding="utf-8")
    assert len(plan.read_grid(path, tmp_path)) == 1 * 3 * 2 * 2 * 3
    path.write_text("streams = [")
    with pytest.raises(ValueError, match=r"grid\.toml is no TOML: .* a grid reads like this:"):
        plan.read_grid(path, tmp_path)


GRIDS = sorted((settings.PROJECT_DATA_DIR / "grids").glob("*.toml"))


@pytest.mark.parametrize("path", GRIDS, ids=lambda path: path.stem)
def test_the_grids_of_the_project_can_be_read_and_name_all_that_they_run(path, tmp_path):
    jobs = plan.read_grid(path, tmp_path)
    assert len({job.name for job in jobs}) == len(jobs) >= 5
    assert path.read_text(encoding="utf-8").startswith("# ")  # says what it is for


def runs_of(name, folder):
    return [job.run for job in plan.read_grid(settings.PROJECT_DATA_DIR / "grids" / f"{name}.toml", folder)]


PAPERS = {  # of its tables 2 to 4: classes a task, memories, pixels (None: the data set's own), methods that it lacks
    "full-cifar10": (2, {300, 500}, None, set()),
    "full-cifar100": (10, {500, 1000}, None, set()),
    "full-mini-imagenet": (20, {500, 1000}, 84, {"gem", "hal"}),
}


@pytest.mark.parametrize("name", PAPERS)
def test_the_full_grids_have_the_papers_settings(name, tmp_path):
    """The paper's section 6.1 and tables; its learning rates are not printed."""
    classes, memories, size, lacking = PAPERS[name]
    runs = runs_of(name, tmp_path)
    methods = set(METHODS) - lacking
    assert {run.method for run in runs} == methods
    assert {run.seed for run in runs} == {1231, 1232, 1233, 1234, 1235}
    assert {run.settings.memory for run in runs if hasattr(run.settings, "memory")} == memories
    assert len(runs) == 5 * (2 * (len(methods) - 2) + 2)  # fine-tune and joint have no memory
    for run in runs:
        assert (run.stream.classes_per_task, run.stream.size, run.stream.flip) == (classes, size, True)
        assert (run.stream.per_class, run.stream.held_out, run.stream.wrong) == (None, None, 0)
        assert (run.recipe.network, run.recipe.epochs, run.recipe.batch) == ("resnet18", 50, 32)
        assert getattr(run.settings, "late_epochs", 5) == 5
        if hasattr(run.settings, "memory") and run.method != "gem":  # which takes all of its memory
            assert run.settings.memory_batch == 32
        if run.method.startswith("metasp"):
            assert run.settings.validation_size == run.settings.memory // 10
            assert run.settings.pseudo_steps == 1


def test_the_near_full_grid_has_all_images_and_a_tenth_of_the_epochs(tmp_path):
    runs = runs_of("near-full-cifar10", tmp_path)
    assert [run.method for run in runs] == [m for m in ("er", "er-late", "metasp", "metasp-rehsel") for _ in range(3)]
    for run in runs:
        assert (run.stream.data, run.stream.per_class, run.stream.size) == ("cifar10", None, None)
        assert (run.recipe.network, run.recipe.epochs) == ("resnet18-20", 5)
        assert getattr(run.settings, "late_epochs", 1) == 1


def test_two_folders_of_one_name_are_not_mixed_up(folder, tmp_path):
    other = make_folder(tmp_path / folder.name, classes=2)
    with pytest.raises(ValueError, match="give the folders of images different names"):
        plan.jobs(description(streams=[str(folder), str(other)]), tmp_path)


def test_an_arm_is_a_method_under_another_name_with_settings_of_its_own(tmp_path):
    """Of the settings the arm's win over its method's, and these over those of all."""
    chosen = {"epochs": 3, "late_epochs": 2, "metasp": {"pseudo_steps": 2, "late_epochs": 1}}
    arms = {"s-only": {"method": "metasp", "gamma": 1.0}, "k-3": {"method": "metasp", "pseudo_steps": 3}}
    jobs = plan.jobs(description(methods=["metasp", "s-only", "k-3"], seeds=[1], set=chosen, arms=arms), tmp_path)
    assert [job.name for job in jobs] == [
        f"split-fashion-mnist_{arm}_memory-200_seed-1" for arm in ("metasp", "s-only", "k-3")
    ]
    assert {job.run.method for job in jobs} == {"metasp"}
    assert [job.run.settings.gamma for job in jobs] == [None, 1.0, None]
    assert [job.run.settings.pseudo_steps for job in jobs] == [2, 2, 3]
    assert {(job.run.recipe.epochs, job.run.settings.late_epochs) for job in jobs} == {(3, 1)}
    assert "--set gamma=1.0" in jobs[1].command
    assert "--method metasp" in jobs[1].command


def test_what_varies_gives_a_run_for_each_value_where_the_method_has_the_setting(tmp_path):
    vary = {"lr": [0.1, 0.03], "pseudo_steps": [1, 3]}
    jobs = plan.jobs(description(seeds=[1], vary=vary), tmp_path)
    assert {(job.run.method, job.run.recipe.lr, getattr(job.run.settings, "pseudo_steps", None)) for job in jobs} == {
        ("er", 0.1, None),
        ("er", 0.03, None),
        *(("metasp", lr, k) for lr in (0.1, 0.03) for k in (1, 3)),
    }
    assert len(jobs) == 6
    assert "split-fashion-mnist_metasp_memory-200_lr-0.03_pseudo_steps-3_seed-1" in {job.name for job in jobs}
