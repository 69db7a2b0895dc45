"""Files: whoever looks finds the old content or the new, whatever happens while it is written."""

import errno
import os
import resource
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from metasp_lite.files import remove_leftovers, replacing, require_writable, write_atomically


@pytest.fixture
def path(tmp_path):
    """A file that is there before."""
    path = tmp_path / "kept.txt"
    path.write_bytes(b"old")
    return path


def only(path):
    return list(path.parent.iterdir()) == [path]


def test_content_is_written_whole_and_text_as_utf8_whatever_the_locale(tmp_path):
    """In the C locale without UTF-8 mode, where Python's own default would be ASCII."""
    path = tmp_path / "new" / "folder" / "a.txt"
    code = (
        "import locale, pathlib, sys; from metasp_lite import files; print(locale.getpreferredencoding())\n"
        "files.write_atomically(pathlib.Path(sys.argv[1]), '\\u03bb\\n')"
    )
    environment = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    command = [sys.executable, "-c", code, str(path)]
    done = subprocess.run(command, check=True, env=environment, capture_output=True, text=True)
    assert "UTF" not in done.stdout.upper()
    assert path.read_bytes() == "λ\n".encode()
    write_atomically(path, b"\x00\xff")
    assert path.read_bytes() == b"\x00\xff"
    assert only(path)


def test_two_writers_at_once_do_not_mix(path):
    """Each holds its own file open while the other writes; the last to end wins, whole."""
    with replacing(path) as slow:
        slow.write(b"slow, ")
        with replacing(path) as fast:
            fast.write(b"fast")
            slow.write(b"but whole")
        assert path.read_bytes() == b"fast"
    assert path.read_bytes() == b"slow, but whole"
    assert only(path)


def test_many_writers_and_readers_at_once_see_whole_contents_alone(path):
    contents = [bytes([number]) * 200_000 for number in range(4)]
    path.write_bytes(contents[0])
    writers = [
        threading.Thread(target=lambda mine=content: [write_atomically(path, mine) for _ in range(20)])
        for content in contents
    ]
    for writer in writers:
        writer.start()
    while any(writer.is_alive() for writer in writers):
        assert path.read_bytes() in contents
    assert path.read_bytes() in contents
    assert only(path)


def test_a_planted_link_is_not_followed(tmp_path, monkeypatch):
    """Not under the fixed name that would be easy to guess, and not under the very name that is taken."""
    path, victim = tmp_path / "a.txt", tmp_path / "victim"
    victim.write_bytes(b"precious")
    (tmp_path / ".a.txt.part").symlink_to(victim)
    write_atomically(path, "new")
    assert (path.read_bytes(), victim.read_bytes()) == (b"new", b"precious")

    class Guessed:
        hex = "0" * 32

    monkeypatch.setattr("metasp_lite.files.uuid.uuid4", Guessed)
    (tmp_path / f".a.txt.{Guessed.hex}.part").symlink_to(victim)
    with pytest.raises(FileExistsError):
        write_atomically(path, "newer")
    assert (path.read_bytes(), victim.read_bytes()) == (b"new", b"precious")


def test_a_link_in_the_files_own_place_is_replaced_and_not_followed(tmp_path):
    path, victim = tmp_path / "a.txt", tmp_path / "victim"
    victim.write_bytes(b"precious")
    path.symlink_to(victim)
    write_atomically(path, "new")
    assert not path.is_symlink()
    assert (path.read_bytes(), victim.read_bytes()) == (b"new", b"precious")


def test_a_full_disk_keeps_the_old_file_and_leaves_nothing(path):
    """The kernel's own error in the middle of a write, by a limit on the size of files."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
        with pytest.raises(OSError, match=os.strerror(errno.EFBIG)):
            write_atomically(path, b"x" * 10_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_bytes() == b"old"
    assert only(path)


def test_a_failed_write_leaves_the_old_file_and_no_other(path, monkeypatch):
    """The disk gives out just before the new content would take the old one's place."""

    def fail(*_):
        raise OSError("no space left")

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(OSError, match="no space left"):
        write_atomically(path, "new")
    assert path.read_bytes() == b"old"
    assert only(path)


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_an_error_halfway_keeps_the_old_file_and_leaves_nothing(path, error):
    def halfway():
        with replacing(path) as file:
            file.write(b"half")
            raise error

    with pytest.raises(error):
        halfway()
    assert path.read_bytes() == b"old"
    assert only(path)


def test_an_error_halfway_in_a_new_file_leaves_none(tmp_path):
    with pytest.raises(ZeroDivisionError), replacing(tmp_path / "new.bin") as file:
        file.write(bytes(1 // 0))
    assert not list(tmp_path.iterdir())


def test_the_content_is_on_the_disk_before_it_takes_the_place(path, monkeypatch):
    seen = []
    fsync, replace = os.fsync, Path.replace

    def noting_fsync(descriptor):
        fsync(descriptor)
        seen.append(os.fstat(descriptor).st_size)

    def noting_replace(self, target):
        seen.append("renamed")
        return replace(self, target)

    monkeypatch.setattr(os, "fsync", noting_fsync)
    monkeypatch.setattr(Path, "replace", noting_replace)
    write_atomically(path, b"12345")
    assert seen == [5, "renamed"]


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
def test_permissions_are_those_that_a_plain_open_gives(tmp_path, mask):
    before = os.umask(mask)
    try:
        for name in ("plain", "ours"):
            (tmp_path / "plain").write_bytes(b"") if name == "plain" else write_atomically(tmp_path / name, b"")
        modes = {stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("plain", "ours")}
        assert modes == {0o666 & ~mask}
        (tmp_path / "ours").chmod(0o640)  # and an existing file keeps its own
        write_atomically(tmp_path / "ours", b"again")
        assert stat.S_IMODE((tmp_path / "ours").stat().st_mode) == 0o640
    finally:
        os.umask(before)


def test_leftovers_of_killed_writers_can_be_removed_and_nothing_else(path):
    code = (
        "import os, sys, pathlib; from metasp_lite import files\n"
        "with files.replacing(pathlib.Path(sys.argv[1])) as file:\n"
        "    file.write(b'half'); file.flush(); os.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", code, str(path)], check=False)
    others = [path.parent / name for name in (".kept.txt.part", ".hidden", "kept.txt.part")]
    for other in others:
        other.touch()
    (left,) = set(path.parent.iterdir()) - {path, *others}
    remove_leftovers(path.parent, older_than=3600)
    assert left.exists()
    remove_leftovers(path.parent)
    assert set(path.parent.iterdir()) == {path, *others}
    assert path.read_bytes() == b"old"


def test_folders_made_for_a_file_go_with_it(tmp_path):
    (tmp_path / "there").mkdir()
    for folder in (tmp_path / "a" / "b" / "c", tmp_path / "there"):
        with pytest.raises(ZeroDivisionError), replacing(folder / "new.bin") as file:
            file.write(bytes(1 // 0))
    assert [path.name for path in tmp_path.rglob("*")] == ["there"]


def test_asking_whether_a_file_can_be_written_leaves_no_trace(path):
    require_writable(path)
    require_writable(path.parent / "a" / "b" / "new")
    assert path.read_bytes() == b"old"
    assert only(path)


def a_file_above(path):
    return path / "deeper" / "new"


def a_folder(path):
    (path.parent / "folder").mkdir()
    return path.parent / "folder"


def a_link_to_nowhere_above(path):
    (path.parent / "link").symlink_to("nowhere")
    return path.parent / "link" / "new"


def a_name_too_long(path):
    return path.parent / ("x" * 250)


def a_folder_too_long(path):
    return path.parent / ("x" * 300) / "new"


def a_zero_byte(path):
    return path.parent / "a\0b"


@pytest.mark.parametrize(
    "target",
    [a_file_above, a_folder, a_link_to_nowhere_above, a_name_too_long, a_folder_too_long, a_zero_byte],
)
def test_what_cannot_be_written_is_refused_by_name(path, target):
    asked = target(path)
    before = sorted(path.parent.rglob("*"))
    with pytest.raises(OSError, match="cannot write ") as error:
        require_writable(asked)
    assert str(asked) in str(error.value)
    assert sorted(path.parent.rglob("*")) == before


def test_a_folder_without_permission_is_refused_by_name(path, monkeypatch):
    """Root may write everywhere: the system's answer is made up."""

    def refuse(*_, **__):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr("builtins.open", refuse)
    with pytest.raises(OSError, match=r"cannot write .*kept\.txt \(Permission denied\); permit it"):
        require_writable(path)
