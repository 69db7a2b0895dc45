"""idx files: what is read is what they hold, and no damage goes unnoticed."""

import gzip

import pytest
from helpers.image_sets import noise, write_idx

from metasp_lite.images import idx


def test_an_idx_file_written_by_hand_reads_as_its_numbers(tmp_path):
    path = tmp_path / "a.gz"
    path.write_bytes(gzip.compress(b"\0\0\x08\x02" + b"\0\0\0\x02" + b"\0\0\0\x03" + bytes([1, 2, 3, 4, 5, 255])))
    assert idx.read_idx(path, "fetch it").tolist() == [[1, 2, 3], [4, 5, 255]]
    assert idx.read_idx_shape(path, "fetch it") == (2, 3)


def test_no_truncation_of_an_idx_file_goes_unnoticed(tmp_path):
    whole = tmp_path / "whole.gz"
    write_idx(whole, noise(0, 3, 4, 4))
    content = whole.read_bytes()
    path = tmp_path / "cut.gz"
    for length in range(len(content)):
        path.write_bytes(content[:length])
        with pytest.raises(ValueError, match=r"cut\.gz.*; fetch it again"):
            idx.read_idx(path, "fetch it again")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"\x00\x00\x0d\x01" + b"\0\0\0\x01" + bytes(4), "magic number is 00000d01"),  # floats
        (b"\x01\x00\x08\x01" + b"\0\0\0\x01" + b"x", "magic number is 01000801"),
        (b"\x00\x00\x08\x01" + b"\0\0\0\x02" + b"x", "holds 1 bytes of data, its header says 2"),
        (b"\x00\x00\x08\x01" + b"\0\0\0\x02" + b"xyz", "holds 3 bytes of data, its header says 2"),
        (b"\x00\x00\x08", "unpack"),
    ],
)
def test_an_idx_file_with_a_wrong_header_or_size_is_named(tmp_path, content, reason):
    (tmp_path / "a.gz").write_bytes(gzip.compress(content))
    with pytest.raises(ValueError, match=rf"a\.gz.*{reason}.*; fetch it"):
        idx.read_idx(tmp_path / "a.gz", "fetch it")


def test_a_plain_or_absent_idx_file_is_named(tmp_path):
    (tmp_path / "a.gz").write_bytes(b"\x00\x00\x08\x01\0\0\0\x01x")
    for name in ("a.gz", "b.gz"):
        with pytest.raises(ValueError, match=f"{name}.*; fetch it"):
            idx.read_idx(tmp_path / name, "fetch it")
