"""`--dry_run true`: all that is known before any weights, from this machine alone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from llmtune import SftArguments
from llmtune.cli.main import main
from llmtune.cli.stages import command_arguments, only_the_stage

QWEN = ["--model_type", "qwen-7b-chat", "--dataset", "damo-agent-mini-zh"]


@pytest.fixture
def dry(tmp_path, monkeypatch, capsys):
    """flags -> (status, rows by name, notes, standard error); nothing may be written."""
    monkeypatch.chdir(tmp_path)
    for name in ("NNODES", "LOCAL_RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)

    def run(*flags, command="sft"):
        before = sorted(tmp_path.rglob("*"))
        status = main([command, *map(str, flags), "--dry_run", "true"])
        assert sorted(tmp_path.rglob("*")) == before
        out, err = capsys.readouterr()
        lines = [line for line in out.splitlines() if "  " in line and not line.startswith("Note: ")]
        rows = {name.strip(): text.strip() for name, _, text in (line.partition("  ") for line in lines)}
        return status, rows, [line[6:] for line in out.splitlines() if line.startswith("Note: ")], err

    return run


def test_what_a_hub_has_would_be_fetched(dry, monkeypatch):
    monkeypatch.setattr("socket.socket.connect", lambda *_: pytest.fail("asks the network"))
    monkeypatch.delenv("LLMTUNE_OFFLINE")
    status, rows, _, _ = dry(*QWEN, "--output_dir", "out")
    assert status == 0
    assert rows["model"] == "qwen-7b-chat, qwen/Qwen-7B-Chat on ModelScope, not on this machine: it would be downloaded"
    assert rows["template"] == "chatml"
    assert rows["target modules"] == "c_attn (the model entry's)"
    assert "damo/MSAgent-Bench on ModelScope, not on this machine: it would be downloaded" in rows["data"]
    assert rows["learning rate"].startswith("0.0001, cosine")
    assert rows["per step"] == "16 samples (1 x 16)"
    assert rows["output"] == str(Path.cwd() / "out/qwen-7b-chat/vN-TIME")
    assert "LLMTUNE_OFFLINE" not in os.environ


def test_a_hub_id_that_no_entry_has(dry, monkeypatch):
    monkeypatch.delenv("LLMTUNE_OFFLINE")
    monkeypatch.setattr("socket.socket.connect", lambda *_: pytest.fail("asks the network"))
    status, rows, _, _ = dry("--model_id_or_path", "owner/name", "--use_hf", "true", "--dataset", "ms::a/b")
    assert status == 0
    assert rows["model"] == "name, owner/name on Hugging Face, not on this machine: it would be downloaded"
    assert rows["data"] == "ms::a/b, a/b on ModelScope, not on this machine: it would be downloaded"


def test_dry_run_shows_launch_line_backend_and_deepspeed(dry, monkeypatch):
    flags = [*QWEN, "--nproc", 2, "--ddp_backend", "nccl", "--gradient_accumulation_steps", 8]
    flags += ["--deepspeed_config_path", "zero3_offload"]
    status, rows, _, _ = dry(*flags)
    assert status == 0
    assert rows["launch"] == "torchrun --nproc_per_node 2 --standalone -m llmtune sft ..."
    assert rows["processes"] == "2, backend nccl"
    assert rows["per step"] == "16 samples (1 x 8 x 2 processes)"
    assert rows["DeepSpeed"].startswith("ZeRO-3, offloads optimizer and param, ")
    monkeypatch.setenv("NNODES", "2")
    monkeypatch.setenv("NODE_RANK", "1")
    monkeypatch.setenv("MASTER_ADDR", "10.0.0.1")
    _, rows, _, _ = dry(*flags)
    assert "--nnodes 2 --node_rank 1 --master_addr 10.0.0.1 --master_port 29500" in rows["launch"]
    assert rows["per step"] == "32 samples (1 x 8 x 4 processes)"


def test_what_is_missing_is_a_note(dry, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda *_: None)
    status, _, notes, _ = dry(
        *QWEN, *["--quantization_bit", "4", "--deepspeed_config_path", "zero2", "--use_flash_attn", "true"]
    )
    assert status == 0
    assert [note for note in notes if "llmtune[deepspeed]" in note]
    assert [note for note in notes if "llmtune[quant]" in note]
    assert [note for note in notes if "--use_flash_attn" in note]


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--model_type", "qwen-7b-chat", "--dataset", "blossom-maht-zh"], "Did you mean"),
        (["--model_type", "qwen-7b-chat", "--dataset", "there/is/none.jsonl"], "there/is/none.jsonl"),
        (["--model_type", "qwen-7b-chat-int4", "--dataset", "tiny-qa", "--dtype", "bf16"], "--dtype fp16"),
        (["--model_id_or_path", "./missing", "--dataset", "tiny-qa"], "There is no folder ./missing"),
        ([*QWEN, "--deepspeed_config_path", "zero9"], "zero9"),
        ([*QWEN, "--resume_from_checkpoint", "gone"], "gone: there is no such folder"),
        ([*QWEN, "--peft_path", "gone"], "gone"),
        ([*QWEN, "--sft_type", "full", "--quantization_bit", "4"], "quantised weights cannot be trained"),
    ],
)
def test_dry_run_finds_mistakes(dry, flags, said):
    status, _, _, err = dry(*flags)
    assert status != 0
    assert said in err


def test_dry_run_maps_target_modules_of_a_local_folder(dry, tmp_path):
    folder = tmp_path / "Qwen-7B-Chat"
    folder.mkdir()
    config = {"architectures": ["QWenLMHeadModel"], "model_type": "qwen", "hidden_size": 64, "num_hidden_layers": 2}
    config |= {"num_attention_heads": 4, "intermediate_size": 256, "vocab_size": 512, "kv_channels": 16}
    config |= {"layer_norm_epsilon": 1e-6, "seq_length": 2048, "max_position_embeddings": 8192}
    (folder / "config.json").write_text(json.dumps(config))
    (tmp_path / "my.jsonl").write_text('{"query": "a", "response": "b"}\n')
    status, rows, _, _ = dry("--model_id_or_path", folder, "--dataset", "my.jsonl#1")
    assert status == 0
    assert rows["model"] == f"qwen-7b-chat, {folder}"
    assert rows["target modules"].endswith("loaded as q_proj k_proj v_proj")
    assert rows["data"] == "my.jsonl#1, 1 file on this machine"


def test_dry_run_of_infer_shows_inherited_settings(dry, tmp_path):
    folder = tmp_path / "checkpoint-10"
    folder.mkdir()
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    saved = {"model_type": "qwen-14b-chat", "dataset": ["blossom-math-zh"], "quantization_bit": 4}
    saved |= {"bnb_4bit_quant_type": "nf4", "max_length": 2048}  # as without it: not told
    (folder / "sft_args.json").write_text(json.dumps(saved))
    status, rows, notes, _ = dry("--ckpt_dir", folder, "--temperature", "0.5", command="infer")
    assert status == 0
    assert rows["checkpoint"] == f"{folder}, lora"
    assert rows["model"].startswith("qwen-14b-chat, qwen/Qwen-14B-Chat on ModelScope, not on this machine")
    assert rows["quantisation"].startswith("4 bits")
    assert rows["data"].startswith("blossom-math-zh, AI-ModelScope/blossom-math-v2")
    assert "temperature 0.5" in rows["generation"]
    assert notes[0] == "from the checkpoint: model_type qwen-14b-chat, quantization_bit 4, dataset blossom-math-zh."


def test_dry_run_imports_no_torch():
    """The flags of every script are tried in this way."""
    code = (
        "import sys; from llmtune.cli.main import main\n"
        f"assert main(['sft', *{QWEN!r}, '--nproc', '2', '--deepspeed_config_path', 'zero2', '--dry_run']) == 0\n"
        "print(sorted({'torch', 'transformers', 'datasets', 'peft', 'modelscope'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.splitlines()[-1:] == ["[]"], done.stderr


def test_a_run_does_not_write_the_flag_down():
    args = command_arguments("sft")(model_type="llmtune-tiny", dry_run=False, learning_rate=1e-3)
    plain = only_the_stage(args)
    assert type(plain) is SftArguments
    assert not hasattr(plain, "dry_run")
    assert plain.learning_rate == 1e-3
