"""Locks end with their process, and say who holds them; where there are none, a line says so."""

import errno
import os
import signal
import subprocess
import sys

import pytest
from helpers.commands import ROOT

from softprompt import UserError
from softprompt.system import locks
from softprompt.system.locks import hold_lock

HOLDER = """
import sys, time
from pathlib import Path
from softprompt.system.locks import hold_lock
with hold_lock(Path(sys.argv[1]), what="x", say=print):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_second_process_is_told_who_holds_the_lock_until_that_one_is_killed(tmp_path):
    path = tmp_path / "new" / ".lock"
    words = [sys.executable, "-c", HOLDER, str(path)]
    with subprocess.Popen(
        words, stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)}
    ) as other:
        assert other.stdout.readline() == "held\n"
        for _ in range(2):
            lock = hold_lock(path, what="`run_dir` x", say=pytest.fail)
            with pytest.raises(UserError, match=rf"`run_dir` x: in use by process {other.pid} on .* since 20"), lock:
                pytest.fail("two hold it")
        other.send_signal(signal.SIGKILL)
        other.wait()
        assert path.exists()
        with hold_lock(path, what="x", say=pytest.fail):
            assert f"process {os.getpid()} " in path.read_text()
    assert not path.exists()


def test_folders_that_were_made_for_a_lock_go_with_it_unless_they_are_used(tmp_path):
    with hold_lock(tmp_path / "a" / "b" / ".lock", what="x", say=pytest.fail):
        pass
    assert list(tmp_path.iterdir()) == []
    with hold_lock(tmp_path / "a" / "b" / ".lock", what="x", say=pytest.fail):
        (tmp_path / "a" / "file").touch()
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["file"]


@pytest.mark.parametrize("number", [errno.ENOTSUP, errno.ENOLCK, errno.ENOSYS, errno.EINVAL])
def test_without_locks_one_line_says_so(tmp_path, monkeypatch, number):
    def refuse(handle):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(locks, "_lock", refuse)
    said = []
    with hold_lock(tmp_path / ".lock", what="`run_dir` x", say=said.append):
        assert list(tmp_path.iterdir()) == []
    assert len(said) == 1 and "`run_dir` x is not locked" in said[0]
