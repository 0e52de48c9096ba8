"""Downloads by the real clients from a hub on the loopback: whole, resumed, once, offline; refusals in words."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from llmtune.errors import HubError
from llmtune.hub.fetch import fetch_dataset, fetch_model

from ..waiting import SECONDS

WEIGHTS = "model.safetensors"
HUBS = pytest.mark.parametrize("use_hf", [False, True], ids=["ModelScope", "HuggingFace"])


def files_of(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


@HUBS
def test_a_model_arrives_whole_and_once(hub, use_hf, tiny_files, capsys):
    folder = fetch_model("owner/tiny", use_hf=use_hf, ignore_file_pattern=[r"vocab\.txt$"])
    wanted = set(tiny_files) - {"pytorch_model.bin", "original/consolidated.00.pth", "vocab.txt"}
    assert {name for name in files_of(folder) if not name.startswith(".")} == wanted
    assert all((folder / name).read_bytes() == tiny_files[name] for name in wanted)
    assert "Model owner/tiny on" in capsys.readouterr().err
    hub.requests.clear()
    assert fetch_model("owner/tiny", use_hf=use_hf, ignore_file_pattern=[r"vocab\.txt$"]) == folder
    assert len(hub.requests) == 1, "the second time asks for the list of files alone"
    hub.repos["model", "owner/tiny"]["config.json"] = json.dumps({"changed": True}).encode()
    if not use_hf:  # this hub's commit never changes, and Hugging Face's client trusts it
        fetch_model("owner/tiny", use_hf=use_hf, ignore_file_pattern=[r"vocab\.txt$"])
        assert json.loads((folder / "config.json").read_text()) == {"changed": True}


@HUBS
def test_weights_can_be_skipped(hub, use_hf):
    names = files_of(fetch_model("owner/tiny", use_hf=use_hf, weights=False))
    assert "config.json" in names
    assert not any(name.endswith((".safetensors", ".bin", ".pth")) for name in names)


@HUBS
def test_a_cut_connection_is_resumed(hub, use_hf, tiny_files):
    hub.cut[WEIGHTS] = 1
    folder = fetch_model("owner/tiny", use_hf=use_hf)
    assert (folder / WEIGHTS).read_bytes() == tiny_files[WEIGHTS]
    if not use_hf:
        assert f"GET FILE {WEIGHTS} from {len(tiny_files[WEIGHTS]) // 2}" in hub.requests
        assert hub.served[WEIGHTS] == len(tiny_files[WEIGHTS])


def test_a_failed_download_resumes_in_the_next_run(hub, tiny_files):
    hub.cut[WEIGHTS] = 1000
    with pytest.raises(HubError, match="The download so far is kept"):
        fetch_model("owner/tiny", use_hf=False)
    hub.cut.clear()
    hub.served.clear()
    folder = fetch_model("owner/tiny", use_hf=False)
    assert (folder / WEIGHTS).read_bytes() == tiny_files[WEIGHTS]
    assert hub.served[WEIGHTS] < len(tiny_files[WEIGHTS]) // 2


@HUBS
@pytest.mark.parametrize(
    ("status", "words"),
    [(404, "has no model 'owner/tiny'"), (401, "--hub_token"), (403, "terms"), (500, "Try again later")],
)
def test_each_http_status_has_its_advice(hub, use_hf, status, words):
    hub.status = status
    with pytest.raises(HubError, match=words):
        fetch_model("owner/tiny", use_hf=use_hf)


@HUBS
def test_an_id_that_is_not_there(hub, use_hf):
    other = "--use_hf false" if use_hf else "--use_hf true"
    with pytest.raises(HubError, match=f"has no model 'owner/none' at revision 'v2'.*{other}"):
        fetch_model("owner/none", use_hf=use_hf, revision="v2")
    with pytest.raises(HubError, match="has no dataset 'owner/none'"):
        fetch_dataset("owner/none", use_hf=use_hf)


@HUBS
def test_a_token_opens_a_private_model(hub, use_hf):
    hub.token = "secret-1"
    with pytest.raises(HubError, match="HTTP 401") as refused:
        fetch_model("owner/tiny", use_hf=use_hf, token="wrong-2")
    assert "wrong-2" not in str(refused.value)
    assert (fetch_model("owner/tiny", use_hf=use_hf, token="secret-1") / "config.json").is_file()


@HUBS
def test_an_earlier_download_serves_without_network(hub, use_hf, monkeypatch, capsys):
    folder = fetch_model("owner/tiny", use_hf=use_hf)
    monkeypatch.setenv("MODELSCOPE_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert fetch_model("owner/tiny", use_hf=use_hf) == folder
    assert "cannot be reached: using" in capsys.readouterr().err
    with pytest.raises(HubError, match=r"cannot be reached.*Check the network"):
        fetch_model("owner/other", use_hf=use_hf)


@pytest.mark.parametrize(
    "text", ["", "null", "[1]", "{}", "[" * 100_000, '{"folder": 3, "files": []}', '{"folder": "/", "files": [[3]]}']
)
def test_a_damaged_record_counts_as_none(hub, text, tmp_path, monkeypatch):
    monkeypatch.setenv("LLMTUNE_CACHE", str(tmp_path))
    folder = fetch_model("owner/tiny", use_hf=True)
    (record,) = (tmp_path / "hub").glob("*.json")
    whole = record.read_text()
    record.write_text(text)
    assert fetch_model("owner/tiny", use_hf=True) == folder
    assert record.read_text() == whole


@HUBS
def test_offline_asks_no_hub(hub, use_hf, monkeypatch):
    folder = fetch_model("owner/tiny", use_hf=use_hf)
    hub.requests.clear()
    monkeypatch.setenv("LLMTUNE_OFFLINE", "1")
    assert fetch_model("owner/tiny", use_hf=use_hf) == folder
    with pytest.raises(HubError, match=r"LLMTUNE_OFFLINE.*not on this machine"):
        fetch_model("owner/other", use_hf=use_hf)
    assert hub.requests == []


def test_the_environment_chooses_the_hub(hub, monkeypatch):
    monkeypatch.setenv("USE_HF", "1")
    assert "models--owner--tiny" in str(fetch_model("owner/tiny"))
    assert "models--owner--tiny" not in str(fetch_model("owner/tiny", use_hf=False))


@HUBS
def test_cache_dir_holds_the_downloads(hub, use_hf, tmp_path):
    folder = fetch_dataset("owner/rows", use_hf=use_hf, cache_dir=str(tmp_path / "mine"))
    assert folder.is_relative_to(tmp_path / "mine")
    assert (folder / "train.csv").read_bytes() == b"query,response\na,b\n"


SCRIPT = """
import sys
from llmtune.hub.fetch import fetch_model
print(fetch_model("owner/tiny", use_hf=False))
"""


def _start(**options) -> subprocess.Popen[str]:
    environment = os.environ | {"MODELSCOPE_DOWNLOAD_MAX_RETRIES": "1"}
    return subprocess.Popen([sys.executable, "-c", SCRIPT], env=environment, stdout=-1, stderr=-1, text=True, **options)


@pytest.mark.medium
def test_processes_of_one_machine_download_once(hub):
    ranks = [_start() for _ in range(3)]
    folders = {rank.communicate(timeout=SECONDS)[0].strip() for rank in ranks}
    assert len(folders) == 1
    assert len([line for line in hub.transfers() if WEIGHTS in line]) == 1


@pytest.mark.medium
def test_a_full_disk_is_named(hub):
    """A limit on the size of files stands in for the disk: both refuse to write on."""
    limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))  # noqa: E731
    _, text = (process := _start(preexec_fn=limit)).communicate(timeout=SECONDS)
    assert process.returncode != 0
    assert "HubError: The disk is full: model 'owner/tiny' cannot be stored" in text
