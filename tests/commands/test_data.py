"""The command that says what is here, and downloads."""

from helpers.image_sets import dropped_sockets, make_tree

from metasp_lite.__main__ import main
from metasp_lite.images import downloads


def test_the_command_lists_what_is_here_and_how_to_get_the_rest(home, capsys):
    make_tree(home / "toy")
    assert main(["data"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["set", "train", "test", "shape", "source"]
    assert lines[1].split()[:4] == ["fashion-mnist", "10,000", "2,000", "1×28×28"]
    assert lines[2].split() == ["toy", "4", "4", "3×6×5", "image", "folder", "METASP_DATA/toy"]
    assert len({line.index(word) for line, word in zip(lines, ("source", "bundled", "image"), strict=False)}) == 1
    assert any("cifar10 is not here" in line and "data download cifar10" in line for line in lines)
    assert any("mini-imagenet is not here" in line and "image folder" in line for line in lines)


@dropped_sockets
def test_the_command_downloads(home, mirror, capsys):
    assert main(["data", "download", "fashion-mnist"]) == 0
    assert str(home / "downloads" / "FashionMNIST") in capsys.readouterr().out
    assert downloads.missing_files("FashionMNIST") == []
