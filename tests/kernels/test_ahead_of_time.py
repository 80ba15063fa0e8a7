"""Kernels compile for GPUs that are not there, on both versions of Triton, and spill no registers."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
OLDER = Path(sys.prefix) / "triton-3.6"
SPILLS = {"attend fp32 d256"}
"""Known to spill: full-precision heads of 256 are there to check against, not to be fast."""

SHARED = {80: 163 << 10, 90: 227 << 10}
"""Bytes of shared memory a program can have, by compute capability."""


def compiled(*options: str, older: bool) -> list[dict[str, object]]:
    """What the compiler says, from a process of its own that does not interpret."""
    if importlib.util.find_spec("triton") is None:
        pytest.skip("triton is not installed: `make test` installs it")
    if older and not OLDER.is_dir():
        pytest.skip(f"{OLDER} is missing: `make test` installs Triton 3.6 there")
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["TRITON_DEFAULT_FP_FUSION"] = "1"
    if older:
        environment["PYTHONPATH"] = str(OLDER)
    command = [sys.executable, str(HERE / "ahead_of_time.py"), *options]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=3600)
    assert done.returncode == 0, done.stderr
    print(done.stdout)
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert {str(line["triton"]).startswith("3.6") for line in lines} == {older}
    return lines


def check(lines: list[dict[str, object]]) -> None:
    """None failed, spilled, or needs more shared memory than there is."""
    wrong = [line for line in lines if line["spilled"] and str(line["variant"]).rsplit(" m", 1)[0] not in SPILLS]
    wrong += [line for line in lines if int(str(line.get("shared", 0))) > SHARED[int(str(line["arch"]))]]
    assert not wrong, "\n".join(map(json.dumps, wrong))


@pytest.mark.parametrize(("older", "arch"), [(False, "90"), (True, "90"), (True, "80")])
def test_the_kernels_of_a_step_compile_without_spills(older: bool, arch: str) -> None:
    names = r"^(score|score_int8|score_codes|score means|rescore|attend|attend partial.*) fp16|^(select_and_place|certify) 4096|^summarize"
    lines = compiled("--arch", arch, "--dims", "128", "--dtypes", "fp16", "--rows", "4", "--only", names, older=older)
    assert len(lines) == 10
    check(lines)
    by_name = {str(line["variant"]): line for line in lines}
    for name in ("score fp16 d128 m4", "score_int8 fp16 d128 m4", "attend fp16 d128 m4"):
        assert by_name[name]["mma"] and by_name[name]["async_copies"], by_name[name]


@pytest.mark.aot
@pytest.mark.parametrize("older", [False, True])
def test_every_kernel_compiles_without_spills(older: bool) -> None:
    check(compiled(older=older))
