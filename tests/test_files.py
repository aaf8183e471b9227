"""Locks on folders: who holds one is named, an end of any kind gives it back, and a stale file is taken over."""

import re
import signal
import subprocess
import sys

import pytest

from l2ljax import files
from l2ljax.types import L2LError

HOLDER = """
import sys
from l2ljax import files
with files.locked(sys.argv[1]):
    print("held", flush=True)
    sys.stdin.read()
"""


def hold(folder):
    """Start another process that holds the folder until its input ends."""
    command = [sys.executable, "-c", HOLDER, str(folder), "--flag=two words"]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    return process


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM, None])
def test_a_folder_is_one_processs_until_it_ends(tmp_path, end):
    folder = tmp_path / "new" / "folder"
    process = hold(folder)
    try:
        with (
            pytest.raises(
                L2LError, match=rf"folder is in use by process {process.pid} on .*two words.*choose"
            ) as error,
            files.locked(folder),
        ):
            pass
        assert "\n" not in str(error.value)
        with files.locked(folder.parent):  # another folder
            pass
    finally:
        process.send_signal(end) if end else process.stdin.close()
        process.wait()
        process.stdout.close()
        process.stdin.close()
    with files.locked(folder):
        assert re.match(r"process \d+ on .* since 20", (folder / ".lock").read_text())
        with pytest.raises(L2LError, match="in use by process"), files.locked(str(folder)):
            pass
    assert not list(folder.iterdir())


def test_an_error_gives_the_folder_back_and_a_left_over_file_is_taken_over(tmp_path):
    (tmp_path / ".lock").write_text("process 1 on a machine that is gone")
    with pytest.raises(KeyError), files.locked(tmp_path):
        raise KeyError
    with files.locked(tmp_path):
        assert "gone" not in (tmp_path / ".lock").read_text()
    with pytest.raises(L2LError, match=r"cannot write to .* \(Not a directory\): choose"), files.locked("/dev/null/x"):
        pass
