"""The GPUs of the machine, as NVIDIA's program lists them."""

from __future__ import annotations

from pathlib import Path

import pytest

from llmtune.board.machine import GpuState, gpu_states

LISTS = {
    "echo '0, NVIDIA H200, 1024, 143771'; echo '1, NVIDIA H200, 0, 143771'": [
        GpuState(0, "NVIDIA H200", 1 << 30, 143771 << 20),
        GpuState(1, "NVIDIA H200", 0, 143771 << 20),
    ],
    "echo 'No devices were found'": [],
    "echo '0, MIG, [N/A], [N/A]'": [],
    "exit 9": [],
}


@pytest.mark.parametrize("said", LISTS)
def test_gpus_are_those_of_the_program(said, tmp_path, monkeypatch):
    program = tmp_path / "nvidia-smi"
    program.write_text(f"#!/bin/sh\n{said}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert gpu_states() == LISTS[said]


def test_a_machine_without_the_program_has_none(monkeypatch):
    monkeypatch.setenv("PATH", str(Path("/nowhere")))
    assert gpu_states() == []
