"""Results that replace nothing which came meanwhile, temporary files of the dead, and file systems that refuse."""

import errno
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from helpers.commands import run_python

from softprompt import UserError
from softprompt.system.files import (
    FileId,
    atomic_folder,
    remove_temporaries,
    require_writable,
    temporary_prefix,
    write_atomic,
    write_result,
)


@pytest.mark.parametrize("links", [True, False])
def test_a_result_never_replaces_a_file_that_came_meanwhile(tmp_path, monkeypatch, links):
    def refuse(*_):
        raise OSError(errno.EPERM, "no hard links")

    if not links:
        monkeypatch.setattr(os, "link", refuse)
    path = tmp_path / "p.safetensors"
    assert write_result(path, b"1", replaces=None) == path
    assert write_result(path, b"1", replaces=None) == path  # the same once more
    assert write_result(path, b"2", replaces=None) == tmp_path / "p-2.safetensors"
    assert write_result(path, b"3", replaces=None) == tmp_path / "p-3.safetensors"
    before = FileId.of(path)
    assert write_result(path, b"4", replaces=before) == path
    assert write_result(path, b"5", replaces=before) == tmp_path / "p-4.safetensors"
    path.unlink()
    assert write_result(path, b"6", replaces=before) == path
    contents = {each.name: each.read_bytes() for each in tmp_path.iterdir()}
    names = ["p.safetensors", "p-2.safetensors", "p-3.safetensors", "p-4.safetensors"]
    assert contents == dict(zip(names, [b"6", b"2", b"3", b"5"], strict=True))


def test_temporary_files_of_dead_processes_are_removed_and_others_kept(tmp_path):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    handle, living = tempfile.mkstemp(dir=tmp_path, prefix=temporary_prefix(tmp_path / "p.safetensors"), suffix=".tmp")
    os.close(handle)
    host = Path(living).name.split(".")[3].partition("-")[2]
    old = f".p.safetensors.{dead.pid}-0000.old.tmp"
    gone = [f".p.safetensors.{dead.pid}-{host}.ab_c12.tmp", old]
    kept = [Path(living).name, f".p.safetensors.{dead.pid}-0000.new.tmp", f".p.safetensors.{dead.pid}.abc.tmp"]
    kept += [".p.safetensors.abc.tmp", ".other.1.tmp", "p.safetensors"]
    for name in gone + kept:
        (tmp_path / name).touch()
    os.utime(tmp_path / old, (0, 0))  # of another host, whose processes are not seen from here, but long ago
    remove_temporaries(tmp_path, r"p\.safetensors", locked=False)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(kept)
    remove_temporaries(tmp_path, r"p\.safetensors", locked=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".other.1.tmp", "p.safetensors"]


def test_what_a_killed_process_left_is_removed_by_the_next_one_that_tries_the_place_or_caches(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    (tmp_path / "softprompt").mkdir()
    kill = "import os, signal\nos.fsync = lambda handle: os.kill(os.getpid(), signal.SIGKILL)\n"
    probe = "from softprompt.system.files import require_writable as try_place\ntry_place('p.run', what='x')"
    cache = "from softprompt.system.cache import write_cached\nwrite_cached('a.json', 1)"
    for code, folder in ((probe, tmp_path), (cache, tmp_path / "softprompt")):
        before = sorted(folder.iterdir())
        assert run_python(kill + code, tmp_path).returncode == -signal.SIGKILL
        assert len(list(folder.glob(".*.tmp"))) == 1
        assert run_python(code, tmp_path).returncode == 0
        assert [path for path in sorted(folder.iterdir()) if path.name != "a.json"] == before


def test_a_folder_that_cannot_be_synced_and_rights_that_cannot_be_set_are_no_errors(tmp_path, monkeypatch):
    real = os.open

    def no_folders(path, *rest, **named):
        if os.path.isdir(path):
            raise PermissionError(errno.EACCES, "Permission denied")
        return real(path, *rest, **named)

    monkeypatch.setattr(os, "open", no_folders)
    monkeypatch.delattr(os, "fchmod")
    write_atomic(tmp_path / "file", b"1")
    with atomic_folder(tmp_path / "folder") as temporary:
        write_atomic(temporary / "file", b"2")
    with atomic_folder(tmp_path / "folder") as temporary:  # one that is there is replaced
        write_atomic(temporary / "file", b"3")
    assert (tmp_path / "file").read_bytes() == b"1" and (tmp_path / "folder" / "file").read_bytes() == b"3"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder"]


def test_places_are_tried_with_a_real_write_and_the_longest_name(tmp_path, monkeypatch):
    with pytest.raises(UserError, match="File name too long"):
        require_writable(tmp_path, what="x", names=("a" * 250,))
    with pytest.raises(UserError, match="File name too long"):
        require_writable(tmp_path / ("a" * 256) / "b", what="x")

    def full(handle):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match="No space left on device"):
        require_writable(tmp_path, what="x")
    assert list(tmp_path.iterdir()) == []
