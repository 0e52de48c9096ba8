"""What bash makes of a script."""

from __future__ import annotations

import os
import subprocess

import pytest

from .table import SCRIPTS


@pytest.fixture(scope="module")
def said(tmp_path_factory):
    """(script, flags) -> the words that bash gives to `llmtune`, and the GPUs that it may see."""
    stubs = tmp_path_factory.mktemp("stub")
    (stubs / "llmtune").write_text('#!/usr/bin/env bash\nprintf "%s\\0" "${CUDA_VISIBLE_DEVICES-}" "$@"\n')
    (stubs / "llmtune").chmod(0o755)
    made: dict[str, list[str]] = {}

    def words(script, *flags, cwd=stubs, **variables):
        kept = {name: os.environ[name] for name in ("HOME", "LANG") if name in os.environ}
        environment = kept | {"PATH": f"{stubs}:{os.environ['PATH']}"} | variables
        done = subprocess.run(["bash", SCRIPTS / script, *flags], capture_output=True, env=environment, cwd=cwd)
        assert done.returncode == 0, done.stderr.decode()
        return done.stdout.decode().split("\0")[:-1]

    def once(script, *flags, **variables):
        key = repr((script, flags, variables))
        if key not in made:
            made[key] = words(script, *flags, **variables)
        return made[key]

    return once


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("NNODES", "LOCAL_RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path
