"""Atomic writes."""

from __future__ import annotations

import errno
import os

import numpy as np
import pytest

from srpo_robot.files import write_whole


@pytest.mark.parametrize("sync", [False, True])
def test_text_bytes_and_a_writer_replace_the_file(tmp_path, sync):
    path = tmp_path / "table"
    write_whole(path, "grün\n", sync)
    assert path.read_bytes() == "grün\n".encode()
    write_whole(path, b"\x00\r\n", sync)
    assert path.read_bytes() == b"\x00\r\n"
    write_whole(path, lambda file: np.save(file, np.arange(3)), sync)
    assert np.load(path).tolist() == [0, 1, 2]
    assert list(tmp_path.iterdir()) == [path]


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "table"
    write_whole(path, "old")

    def full(file):
        file.write(b"half of it")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(OSError):
        write_whole(path, full)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_that_does_not_exist_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        write_whole(tmp_path / "none" / "table", "text")
    assert not (tmp_path / "none").exists()


def test_the_file_gets_the_permissions_of_any_new_file(tmp_path):
    (tmp_path / "plain").write_text("")
    write_whole(tmp_path / "table", "text")
    assert (tmp_path / "table").stat().st_mode == (tmp_path / "plain").stat().st_mode
