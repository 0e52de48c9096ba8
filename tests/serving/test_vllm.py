"""The same flags for vLLM: the command line, which vLLM itself is not needed for."""

from __future__ import annotations

import importlib.util
import json

import pytest

from llmtune.arguments.service import ServeArguments
from llmtune.cli.main import find_command
from llmtune.errors import MissingPackageError, UsageError
from llmtune.models.tiny import tiny_folder
from llmtune.serving import vllm
from llmtune.serving.vllm import vllm_command


def flags_of(words: list[str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for word in words[3:]:
        if word.startswith("--"):
            found[last := word] = []
        else:
            found[last].append(word)
    return found


def test_full_weights_are_served_by_their_folder(tuned):
    args = ServeArguments(
        ckpt_dir=str(tuned), dtype="bf16", port=9000, max_batch_size=64, max_prompt_length=1000, max_new_tokens=24,
        served_model_name="mine", trust_remote_code=True, temperature=0.5, top_k=7,
    )  # fmt: skip
    words = vllm_command(args)
    assert words[:3] == ["vllm", "serve", str(tuned)]
    found = flags_of(words)
    assert found["--dtype"] == ["bfloat16"]
    assert (found["--host"], found["--port"]) == (["127.0.0.1"], ["9000"])
    assert found["--served-model-name"] == ["mine"]
    assert found["--max-num-seqs"] == ["64"]
    assert found["--max-model-len"] == ["1024"]
    assert found["--trust-remote-code"] == []
    assert "--enable-lora" not in found
    given = json.loads(found["--override-generation-config"][0])
    assert given == {"temperature": 0.5, "top_k": 7, "top_p": 0.9, "repetition_penalty": 1.0, "max_new_tokens": 24}


def test_the_embedded_model_is_a_folder():
    assert vllm_command(ServeArguments(model_type="llmtune-tiny"))[2] == str(tiny_folder())


@pytest.mark.medium
def test_adapters_are_lora_modules_of_their_base(tuned, adapters):
    args = ServeArguments(ckpt_dir=str(adapters["red"]), adapters=[f"blue={adapters['blue']}"])
    words = vllm_command(args)
    found = flags_of(words)
    assert words[2] == str(tuned)
    assert found["--served-model-name"] == ["base"]
    assert found["--enable-lora"] == []
    assert found["--max-lora-rank"] == ["16"]
    assert found["--lora-modules"] == [f"llmtune-tiny={adapters['red']}", f"blue={adapters['blue']}"]


def test_tools_are_read_by_vllms_parser_of_the_same_format():
    args = ServeArguments(model_type="qwen2.5-7b-instruct", dtype="fp16", quantization_bit=4)
    found = flags_of(vllm_command(args))
    assert found["--tool-call-parser"] == ["hermes"]
    assert "--enable-auto-tool-choice" in found
    chosen = ServeArguments(model_type="qwen1.5-7b-chat", tool_format="llama3.1")
    assert flags_of(vllm_command(chosen))["--tool-call-parser"] == ["llama3_json"]
    assert found["--quantization"] == ["bitsandbytes"]
    with pytest.raises(UsageError, match="4 bits only"):
        vllm_command(ServeArguments(model_type="qwen2.5-7b-instruct", quantization_bit=8))


def test_a_missing_vllm_is_named(tuned, capsys, monkeypatch):
    monkeypatch.setenv("LLMTUNE_API_KEY", "s3cret")
    flags = ["--ckpt_dir", str(tuned), "--backend", "vllm", "--max_queue", "3"]
    assert find_command("serve").run([*flags, "--dry_run", "true"]) == 0
    told = capsys.readouterr()
    assert told.out.startswith(f"vllm serve {tuned} --host 127.0.0.1")
    assert "s3cret" not in told.out
    assert "--max_queue has no effect with --backend vllm" in told.err
    if importlib.util.find_spec("vllm") is None:
        with pytest.raises(MissingPackageError, match="pip install vllm"):
            find_command("serve").run(flags)


def test_the_key_goes_through_the_environment(tuned, monkeypatch):
    seen = {}
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(
        vllm, "replace_process", lambda words, environment: seen.update(words=words, environment=environment)
    )
    find_command("serve").run(
        ["--ckpt_dir", str(tuned), "--backend", "vllm", "--api_key", "s3cret", "--host", "0.0.0.0"]
    )
    assert seen["environment"]["VLLM_API_KEY"] == "s3cret"
    assert not any("s3cret" in word for word in seen["words"])
    assert seen["words"][1:4] == ["-m", "vllm.entrypoints.cli.main", "serve"]
