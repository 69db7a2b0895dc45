"""Settings: what the environment says is obeyed, and what it cannot mean is refused with the way out."""

from pathlib import Path

import pytest
import torch

from metasp_lite import settings
from metasp_lite.continual import presets


def test_profile_is_lite_where_nothing_is_set(monkeypatch):
    monkeypatch.delenv("METASP_PROFILE", raising=False)
    assert settings.profile() == "lite"


@pytest.mark.parametrize("name", ["lite", "full"])
def test_profile_is_read_from_the_environment(monkeypatch, name):
    monkeypatch.setenv("METASP_PROFILE", name)
    assert settings.profile() == name


@pytest.mark.parametrize("name", ["Full", "fast", " lite", ""])
def test_unknown_profile_is_refused_with_the_two_that_exist(monkeypatch, name):
    monkeypatch.setenv("METASP_PROFILE", name)
    with pytest.raises(ValueError, match="lite, full") as caught:
        settings.profile()
    assert repr(name) in str(caught.value)


def test_data_dir_is_the_projects_own_where_nothing_is_set(monkeypatch):
    monkeypatch.delenv("METASP_DATA", raising=False)
    assert settings.data_dir() == settings.PROJECT_DIR / "data"
    assert (settings.data_dir() / "bundled").is_dir()  # the right folder, not one that happens to exist
    monkeypatch.setenv("METASP_DATA", "")
    assert settings.data_dir() == settings.PROJECT_DIR / "data"


def test_data_dir_is_read_from_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("METASP_DATA", str(tmp_path))
    assert settings.data_dir() == tmp_path
    (tmp_path / "sets").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("METASP_DATA", "~/sets")
    assert settings.data_dir() == tmp_path / "sets"


def test_missing_data_dir_is_refused_and_not_made(monkeypatch, tmp_path):
    folder = tmp_path / "nowhere"
    monkeypatch.setenv("METASP_DATA", str(folder))
    with pytest.raises(FileNotFoundError, match="create it or unset METASP_DATA") as caught:
        settings.data_dir()
    assert str(folder) in str(caught.value)
    assert not folder.exists()


@pytest.mark.parametrize(("available", "expected"), [(True, "cuda"), (False, "cpu")])
def test_device_is_cuda_exactly_where_there_is_one(monkeypatch, available, expected):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: available)
    assert settings.device() == torch.device(expected)


def test_a_package_without_its_project_says_what_to_set(monkeypatch, tmp_path):
    monkeypatch.setattr(settings, "PROJECT_DATA_DIR", tmp_path / "site-packages" / "data")
    monkeypatch.delenv("METASP_DATA", raising=False)
    with pytest.raises(FileNotFoundError, match="set METASP_DATA to a folder of data sets, or use a checkout"):
        settings.data_dir()


def test_caches_lie_in_the_project_where_it_can_be_written(monkeypatch, tmp_path):
    monkeypatch.delenv("METASP_CACHE", raising=False)
    monkeypatch.setattr(settings, "PROJECT_DATA_DIR", tmp_path)
    assert settings.cache_dir() == tmp_path / "cache"
    monkeypatch.setenv("METASP_CACHE", "~/own")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert settings.cache_dir() == tmp_path / "own"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("METASP_CACHE", "near")
    assert settings.cache_dir() == tmp_path / "near"
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("project", ["read-only", "its cache read-only", "none"])
def test_caches_of_a_project_that_cannot_be_written_are_the_users(monkeypatch, tmp_path, project):
    data = tmp_path / "data"
    if project != "none":
        data.mkdir()
    if project == "its cache read-only":
        (data / "cache").mkdir()
    forbidden = data / "cache" if project == "its cache read-only" else data
    access = settings.os.access
    monkeypatch.setattr(settings.os, "access", lambda path, mode: path != forbidden and access(path, mode))
    monkeypatch.setattr(settings, "PROJECT_DATA_DIR", data)
    for name in ("METASP_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert settings.cache_dir() == tmp_path / "home" / ".cache" / "metasp_lite"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert settings.cache_dir() == tmp_path / "xdg" / "metasp_lite"


def test_folders_are_made_absolute_for_a_process_that_starts_elsewhere(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("METASP_DATA", "sets")
    monkeypatch.setenv("METASP_CACHE", "")
    assert settings.for_another_folder() == {"METASP_DATA": str(tmp_path / "sets")}


@pytest.mark.parametrize("named", ["~nobody-of-that-name", "~nobody-of-that-name/sets"])
def test_the_home_of_somebody_unknown_is_a_folder_that_is_not_there(monkeypatch, named):
    """``Path.expanduser`` would end with a RuntimeError, and so the command with a traceback."""
    assert settings.expanded(named) == Path(named)
    assert settings.expanded("~") == Path.home()
    with pytest.raises(ValueError, match="there is no stream '~"):
        presets.build(named, "er", 1)
    monkeypatch.setenv("METASP_DATA", named)
    with pytest.raises(FileNotFoundError, match=r"METASP_DATA=~nobody.* is not a folder"):
        settings.data_dir()
