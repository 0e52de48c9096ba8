"""Checkpoints to a hub, by the real clients: five strategies, refusals, cut connections, and a run that goes on."""

from __future__ import annotations

import json

import pytest

from llmtune.arguments.stage import SftArguments
from llmtune.cli.main import main
from llmtune.errors import HubError
from llmtune.hub.clients import HuggingFace, Repo, explain
from llmtune.hub.fetch import fetch_model
from llmtune.hub.push import STATE_FILES, destination, push_folder
from llmtune.run.model_card import card_of
from llmtune.stages.sft import sft
from llmtune.training import hub_push as module

HUBS = pytest.mark.parametrize("use_hf", [False, True], ids=["ModelScope", "HuggingFace"])


@pytest.fixture
def checkpoint(tmp_path):
    folder = tmp_path / "checkpoint-7"
    folder.mkdir()
    (folder / "adapter_model.safetensors").write_bytes(bytes(range(256)) * 8000)
    (folder / "adapter_config.json").write_text('{"r": 8}')
    (folder / "optimizer.pt").write_bytes(b"state")
    (folder / "README.md").write_text("---\nbase_model: /home/me/model\n---\n")
    return folder


@HUBS
def test_a_folder_arrives_whole(hub, use_hf, checkpoint):
    hub.token = "secret"
    where = destination("mine", use_hf_hub=use_hf, token="secret")
    assert where.repo.repo_id == "somebody/mine"
    push_folder(checkpoint, where, message="seven")
    pushed = hub.repos["model", "somebody/mine"]
    assert pushed["adapter_model.safetensors"] == (checkpoint / "adapter_model.safetensors").read_bytes()
    assert pushed["adapter_config.json"] == b'{"r": 8}'
    assert not {"optimizer.pt", "README.md"} & set(pushed), "no state, no card with a path of this machine"
    (checkpoint / "README.md").write_text("---\nbase_model: owner/base\n---\n")
    push_folder(checkpoint, where, message="seven", path_in_repo="last-checkpoint", with_state=True)
    assert pushed["last-checkpoint/optimizer.pt"] == b"state"
    assert pushed["last-checkpoint/README.md"].startswith(b"---")
    assert destination("somebody/mine", use_hf_hub=use_hf, token="secret").repo == where.repo, "it is there already"


@pytest.mark.parametrize("form", ["", "---\nbase_model: owner/base\n---\n# Model Card\n[More Information Needed]\n"])
def test_a_card_is_written_where_there_is_none(hub, checkpoint, form):
    """In the place of PEFT's empty form as well; one of the user's own stays, and so does the checkpoint."""
    hub.token = "secret"
    card = checkpoint / "README.md"
    card.unlink()
    if form:
        card.write_text(form)
    settings = {"model_type": "qwen2.5-7b-instruct", "dataset": ["/home/me/rows.jsonl"], "lora_rank": 4}
    (checkpoint / "sft_args.json").write_text(json.dumps(settings))
    where = destination("mine", use_hf_hub=True, token="secret")
    push_folder(checkpoint, where, message="seven", write_card=card_of(checkpoint))
    pushed = hub.repos["model", "somebody/mine"]["README.md"].decode()
    assert "base_model: Qwen/Qwen2.5-7B-Instruct" in pushed
    assert "# Qwen2.5-7B-Instruct, fine-tuned" in pushed
    assert "| data | a local file, rows.jsonl |" in pushed
    assert "| `--lora_rank` | 4 |" in pushed
    assert "library_name: peft" in pushed
    assert (card.read_text() if card.exists() else "") == form


def test_the_card_of_a_model_that_is_registered_elsewhere(checkpoint):
    (checkpoint / "sft_args.json").write_text(json.dumps({"model_type": "my-own", "template_type": "mine"}))
    card_of(checkpoint)(checkpoint)
    assert "| base model | my-own |" in (checkpoint / "README.md").read_text()


def test_no_folder_of_this_machine_is_pushed(hub, checkpoint):
    """What names one keeps its last part; the checkpoint here stays as it is."""
    args = {"dataset": [f"{checkpoint.parent}/rows.jsonl#9", "tiny-qa"], "output_dir": str(checkpoint.parent)}
    (checkpoint / "sft_args.json").write_text(
        json.dumps(args | {"custom_register_path": "../mine.py", "system": "/no_think"})
    )
    (checkpoint / "trainer_state.json").write_text(json.dumps({"best_model_checkpoint": str(checkpoint), "epoch": 1.0}))
    (checkpoint / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "/home/me/gpt2", "r": 8}))
    sizes = {path.name: path.stat().st_size for path in checkpoint.iterdir()}
    (checkpoint / "checkpoint.json").write_text(json.dumps({"files": sizes}))
    before = {path.name: path.read_bytes() for path in checkpoint.iterdir()}
    push_folder(checkpoint, destination("mine", token="any"), message="seven")
    pushed = hub.repos["model", "somebody/mine"]
    assert json.loads(pushed["sft_args.json"]) == {
        "dataset": ["rows.jsonl#9", "tiny-qa"],
        "output_dir": checkpoint.parent.name,
        "custom_register_path": "mine.py",
        "system": "/no_think",
    }
    assert json.loads(pushed["trainer_state.json"]) == {"best_model_checkpoint": "checkpoint-7", "epoch": 1.0}
    assert json.loads(pushed["adapter_config.json"]) == {"base_model_name_or_path": None, "r": 8}
    listed = json.loads(pushed["checkpoint.json"])["files"]
    assert {name: size for name, size in listed.items() if name in pushed} == {
        name: len(pushed[name]) for name in sizes if name in pushed
    }
    assert {path.name: path.read_bytes() for path in checkpoint.iterdir()} == before
    assert [path.name for path in checkpoint.parent.iterdir()] == ["checkpoint-7"], "nothing is left behind"


@HUBS
def test_a_refused_token_is_never_shown(hub, use_hf, checkpoint):
    hub.token = "secret"
    with pytest.raises(HubError, match="HTTP 401") as refused:
        destination("mine", use_hf_hub=use_hf, token="wrong-token")
    assert "wrong-token" not in str(refused.value)
    hub.token, hub.status = None, 500
    with pytest.raises(HubError, match="HTTP 500"):
        destination("somebody/mine", use_hf_hub=use_hf, token="any")


def test_pushing_without_network_promises_nothing():
    """Nothing is downloaded here: that what has come so far is kept helps nobody."""
    told = str(explain(ConnectionError("refused"), HuggingFace(), Repo("model", "somebody/mine"), sending=True))
    assert told == "Hugging Face cannot be reached to push the model 'somebody/mine': refused. Check the network."


def run(tmp_path, **options):
    return sft(SftArguments(
        model_type="llmtune-tiny", dataset=["self-intro#30"], max_steps=4, save_steps=2, eval_steps=2, batch_size=2,
        gradient_accumulation_steps=1, output_dir=str(tmp_path / "output"), model_name=["A"], model_author=["B"],
        push_to_hub=True, hub_token="secret", **options,
    ))  # fmt: skip


EXPECTED = {
    "end": {""},
    "push_best": {""},
    "push_last": {""},
    "checkpoint": {"last-checkpoint/"},
    "all_checkpoints": {"checkpoint-2/", "checkpoint-4/"},
}


@pytest.mark.medium
@pytest.mark.parametrize("strategy", EXPECTED)
def test_each_strategy_pushes_its_checkpoints(hub, tmp_path, strategy, capsys):
    result = run(tmp_path, push_hub_strategy=strategy, use_hf=strategy == "push_last", hub_model_id="tuned")
    pushed = hub.repos["model", "somebody/tuned"]
    name = "adapter_model.safetensors"
    assert {path.removesuffix(name) for path in pushed if path.endswith(name)} == EXPECTED[strategy]
    last = next(content for path, content in reversed(pushed.items()) if path.endswith(name))
    of = result.best_checkpoint if strategy == "push_best" else result.last_checkpoint
    assert last == (of / name).read_bytes()
    has_state = any(path.endswith("optimizer.pt") for path in pushed)
    assert has_state == (strategy == "checkpoint")
    for place in EXPECTED[strategy]:
        card = pushed[f"{place}README.md"].decode()
        assert "# llmtune-tiny, fine-tuned" in card
        assert "| data | self-intro |" in card
        assert "| eval_loss |" in card
    assert not list(result.output_dir.glob(".pushing-*"))
    assert b"secret" not in b"".join(pushed.values())
    said = capsys.readouterr().err
    assert "Pushed to somebody/tuned" in said
    assert "secret" not in said


@pytest.mark.medium
def test_a_broken_connection_is_tried_again(hub, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "WAIT", 0.0)
    hub.broken_pushes = 1
    run(tmp_path, push_hub_strategy="end", hub_model_id="tuned")
    assert "adapter_config.json" in hub.repos["model", "somebody/tuned"]


@pytest.mark.medium
def test_an_upload_never_fails_the_run(hub, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(module, "WAIT", 0.0)
    hub.broken_pushes = 10_000
    result = run(tmp_path, push_hub_strategy="end", hub_model_id="tuned")
    assert result.last_checkpoint is not None
    said = capsys.readouterr().err
    assert "could not be pushed" in said
    assert f"llmtune push --ckpt_dir {result.output_dir / 'checkpoint-4'} --hub_model_id somebody/tuned" in said


def test_a_refused_token_stops_the_run_before_training(hub, tmp_path):
    hub.token = "another"
    with pytest.raises(HubError, match="--hub_token"):
        run(tmp_path)
    assert not (tmp_path / "output/llmtune-tiny").exists()


def test_llmtune_push_pushes_a_checkpoint(hub, checkpoint, capsys):
    assert main(["push", "--ckpt_dir", str(checkpoint), "--hub_model_id", "mine", "--hub_token", "secret"]) == 0
    assert f"Pushed {checkpoint} to somebody/mine on ModelScope" in capsys.readouterr().out
    assert main(["push", "--ckpt_dir", "nowhere", "--hub_model_id", "mine"]) == 2
    assert main(["push", "--ckpt_dir", str(checkpoint)]) == 2
    assert "needs --ckpt_dir FOLDER and --hub_model_id NAME" in capsys.readouterr().err


@pytest.mark.medium
def test_state_files_are_those_of_a_checkpoint(hub, tmp_path):
    result = run(tmp_path, push_hub_strategy="end", hub_model_id="tuned")
    names = {path.name for path in result.last_checkpoint.iterdir()}
    assert {"optimizer.pt", "scheduler.pt", "training_args.bin"} <= names & {*STATE_FILES}


@HUBS
def test_the_card_states_the_licence_of_a_base_that_was_fetched(hub, use_hf, checkpoint, tmp_path):
    readme = b"---\nlicense: apache-2.0\nlanguage: [en]\n---\n"
    hub.repos["model", "owner/base"] = {"README.md": readme, "config.json": b'{"vision_config": {}}'}
    settings = {"model_type": "auto", "model_id_or_path": "owner/base", "use_hf": use_hf, "cache_dir": str(tmp_path)}
    (checkpoint / "sft_args.json").write_text(json.dumps(settings))
    card_of(checkpoint)(checkpoint)
    assert "license:" not in (checkpoint / "README.md").read_text()
    assert not hub.requests, "no hub is asked for a card"
    fetch_model("owner/base", use_hf=use_hf, cache_dir=settings["cache_dir"])
    card_of(checkpoint)(checkpoint)
    text = (checkpoint / "README.md").read_text()
    for said in ("license: apache-2.0", "- en\n", "base_model: owner/base", "pipeline_tag: image-text-to-text"):
        assert said in text
