"""P7: a full disk is StoreFull; reading goes on, and appending works again once there is room, without repair."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from agent_memory.errors import StoreFull
from agent_memory.store.store import Store
from tests.store.support import Child, append, assert_numbered, assert_whole, fill, open_session, segment


@contextmanager
def small_disk(kilobytes: int) -> Iterator[Path]:
    """Mounted outside pytest's own folders: where a test is killed, what stays mounted would fail every later run as it tidies them."""
    where = Path(tempfile.mkdtemp(prefix="agent-memory-disk-"))
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", str(where)], capture_output=True)  # noqa: S607
    if done.returncode:
        where.rmdir()
        pytest.skip("mounting a small disk needs root")
    try:
        yield where
    finally:
        subprocess.run(["umount", str(where)], check=True)  # noqa: S607
        where.rmdir()


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk needs root")
@pytest.mark.parametrize("kilobytes", [192, 256, 320, 448, 640, 1024, 2048, 4096])
def test_appending_works_again_when_there_is_room(kilobytes: int, empty_store: Path) -> None:
    with small_disk(kilobytes) as disk:
        ballast = disk / "ballast"
        root = Path(shutil.copytree(empty_store, disk / "store"))
        ballast.write_bytes(bytes((kilobytes - 176) * 1024))
        with Store.open(root) as store:
            timeline = open_session(store)
            acknowledged = 0
            with pytest.raises(StoreFull):
                while True:
                    append(timeline, 32)
                    acknowledged += 1
                    timeline.put_segment(timeline.kv_tokens // 32, segment(timeline.kv_tokens // 32, 1))
            assert timeline.turn_count == acknowledged
            assert_numbered(timeline, 32)
            assert store.verify().ok
            with pytest.raises(StoreFull):
                for _ in range(50):
                    append(timeline, 4000)
            if kilobytes > 192:
                ballast.unlink()
                kept = timeline.turn_count
                fill(timeline, 3, 32)
                assert timeline.turn_count == kept + 3
                assert store.verify().ok
        assert_whole(root)


def test_a_file_size_limit_loses_nothing(fresh: Callable[[], Path]) -> None:
    root = fresh()
    with Store.open(root) as store:
        timeline = open_session(store)
        fill(timeline, 4, 32)

    def limited(tell: Callable[[str], None]) -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        with Store.open(root) as store:
            timeline = open_session(store)
            resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))
            try:
                timeline.put_segment(0, segment(0, 4))
            except StoreFull:
                tell("full")
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
            timeline.put_segment(0, segment(0, 4))
            append(timeline, 32)
            tell(str(timeline.turn_count))

    assert Child(limited).finish() == (["full", "5"], 0)
    with Store.open(root) as store:
        assert open_session(store).turn_count == 5
        assert store.verify().ok
