"""Settings: what the environment says is obeyed, and what it cannot mean is refused with the way out."""

import pytest
import torch

from metasp_lite import settings


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
