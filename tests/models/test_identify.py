"""Which entry a model follows: by id, by name, by its own files; a folder that no entry knows trains as well."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from llmtune.arguments.stage import SftArguments
from llmtune.errors import HubError, ModelError, UsageError
from llmtune.models.identify import identify
from llmtune.models.info import MODEL_MAPPING
from llmtune.models.tiny import tiny_folder
from llmtune.stages.sft import sft


@pytest.fixture
def folder(tmp_path):
    """A model folder of another name, without a chat template."""
    target = tmp_path / "mine"
    shutil.copytree(tiny_folder(), target)
    (target / "chat_template.jinja").unlink(missing_ok=True)
    change(target, "tokenizer_config.json", chat_template=None)
    return target


def change(folder: Path, name: str, **values: object) -> None:
    file = folder / name
    said = json.loads(file.read_text()) if file.is_file() else {}
    file.write_text(json.dumps({key: value for key, value in (said | values).items() if value is not None}))


def test_by_id():
    assert identify("Qwen/Qwen2.5-7B-Instruct").model_type == "qwen2.5-7b-instruct"
    assert identify("meta-llama/Llama-2-7b-chat-hf").model_type == "llama2-7b-chat"
    assert identify("modelscope/Llama-2-7b-chat-ms").model_type == "llama2-7b-chat"
    assert identify("Qwen/Qwen3-8B").template is None


@pytest.mark.parametrize(
    "path",
    [
        "Qwen2.5-7B-Instruct",
        "qwen2.5-7b-instruct",
        "models--Qwen--Qwen2.5-7B-Instruct/snapshots/0123abc",
        "models/Qwen--Qwen2.5-7B-Instruct/snapshots/master",
        "Qwen/Qwen2___5-7B-Instruct",
    ],
)
def test_by_name(tmp_path, path):
    (tmp_path / path).mkdir(parents=True)
    found = identify(str(tmp_path / path))
    assert found.model_type == "qwen2.5-7b-instruct"
    assert found.reason.startswith("its name")


def test_by_the_run_that_wrote_it(folder):
    change(folder, "sft_args.json", model_type="qwen2.5-7b", template_type="qwen2.5", sft_type="full")
    assert (identify(str(folder)).model_type, identify(str(folder)).template) == ("qwen2.5-7b", "qwen2.5")


@pytest.mark.parametrize(
    ("name", "config", "key", "template"),
    [
        ("qwen2_5", {"hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24},
         "qwen2.5-0.5b-instruct", "qwen2.5"),
        ("qwen2_5", {"hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28},
         "qwen2.5-7b-instruct", "qwen2.5"),
        ("qwen1_5", {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32},
         "qwen1.5-7b-chat", "qwen1.5"),
        ("llama3_1", {"architectures": ["LlamaForCausalLM"], "vocab_size": 128256, "hidden_size": 4096,
                      "intermediate_size": 14336, "num_hidden_layers": 32}, "llama3-8b-instruct", "llama3"),
        ("qwen3", {"architectures": ["Qwen3ForCausalLM"], "hidden_size": 4096, "intermediate_size": 12288,
                   "num_hidden_layers": 36}, "qwen3-8b", "qwen3"),
    ],
)  # fmt: skip
def test_by_class_vocabulary_chat_template_and_size(folder, assets, name, config, key, template):
    change(folder, "config.json", **({"vocab_size": 151936} | config))
    shutil.copy(assets / "tokenizers" / name / "tokenizer_config.json", folder)
    found = identify(str(folder))
    assert (found.model_type, found.template) == (key, template)
    assert "config.json says" in found.reason
    assert f"that of {template}" in found.reason


def test_a_base_model_is_no_chat_model(folder):
    change(folder, "config.json", vocab_size=151936, hidden_size=896, intermediate_size=4864, num_hidden_layers=24)
    found = identify(str(folder))
    info = MODEL_MAPPING[found.model_type]
    assert found.model_type.endswith("-0.5b")
    assert (info.architecture, found.template) == ("Qwen2ForCausalLM", "default-generation")


def test_checkpoints_of_2023_say_it_in_the_generation_config(folder):
    change(folder, "config.json", architectures=["QWenLMHeadModel"], vocab_size=151936, hidden_size=4096,
           intermediate_size=22016, num_hidden_layers=32, num_attention_heads=32, model_type="qwen")  # fmt: skip
    assert identify(str(folder)).model_type == "qwen-7b"
    change(folder, "generation_config.json", chat_format="chatml")
    assert (identify(str(folder)).model_type, identify(str(folder)).template) == ("qwen-7b-chat", "chatml")


def test_no_entry_knows_it(folder):
    change(folder, "config.json", architectures=["StarCoder2ForCausalLM"])
    assert (identify(str(folder)).model_type, identify(str(folder)).template) == ("auto", "default-generation")
    template = "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}<|im_end|>{% endfor %}<assistant>"
    change(folder, "tokenizer_config.json", chat_template=template)
    assert (identify(str(folder)).model_type, identify(str(folder)).template) == ("auto", "auto")


def test_what_is_no_model(tmp_path):
    with pytest.raises(ModelError, match=r"no config\.json"):
        identify(str(tmp_path))
    for path in ("./nowhere", str(tmp_path / "nowhere"), "~/nowhere/at/all", "a/b/c"):
        with pytest.raises(UsageError, match="There is no folder"):
            identify(path)
    with pytest.raises(HubError, match="owner/unknown"):
        identify("owner/unknown")


TEMPLATE = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + ': ' + m['content'] + '<|im_end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant: ' }}{% endif %}"
)


@pytest.mark.medium
def test_a_folder_in_no_catalogue_trains_and_answers(tmp_path, capsys, monkeypatch):
    from transformers import AutoModelForCausalLM, AutoTokenizer, Olmo2Config

    from llmtune.arguments.infer import InferArguments
    from llmtune.inference.infer import infer

    def no_network(*_: object) -> None:
        raise AssertionError("a local path asked the network")

    monkeypatch.setattr("socket.socket.connect", no_network)
    folder = tmp_path / "home-made"
    tokenizer = AutoTokenizer.from_pretrained(str(tiny_folder()))
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    config = Olmo2Config(vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2,
                         num_attention_heads=4, eos_token_id=tokenizer.eos_token_id)  # fmt: skip
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    args = SftArguments(
        model_id_or_path=str(folder), dataset=["self-intro#20"], max_steps=2, batch_size=2,
        gradient_accumulation_steps=1, output_dir=str(tmp_path / "output"), model_name=["A"], model_author=["B"],
    )  # fmt: skip
    assert (args.model_type, args.template_type) == ("auto", "auto")
    result = sft(args)
    said = capsys.readouterr().err
    assert "No --model_type given: using auto (config.json says Olmo2ForCausalLM" in said
    assert "adapting all linear ones: q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj" in said
    assert result.output_dir.parent.name == "home-made"
    answered = infer(InferArguments(ckpt_dir=str(result.last_checkpoint), show_dataset_sample=1, max_new_tokens=4))
    assert len(answered) == 1


@pytest.mark.parametrize(
    ("architecture", "vocab_size", "expected"),
    [
        ("LlamaForCausalLM", 32000, "llama2-7b-chat"), ("LlamaForCausalLM", 128256, "llama3-8b-instruct"),
        ("LlamaForCausalLM", 49152, "smollm2-1.7b-instruct"), ("MistralForCausalLM", 32000, "mistral-7b-chat"),
    ],
)  # fmt: skip
def test_without_a_chat_template_the_maker_comes_before_what_others_made_of_it(
    tmp_path, architecture, vocab_size, expected
):
    """A folder that is named as a chat model and says nothing of its template: never that of OpenBuddy or DeepSeek."""
    target = tmp_path / "my-chat"
    target.mkdir()
    sizes = {"hidden_size": 4096, "num_hidden_layers": 32, "intermediate_size": 12288}
    change(target, "config.json", architectures=[architecture], vocab_size=vocab_size, model_type="llama", **sizes)
    found = identify(str(target))
    assert MODEL_MAPPING.canonical(found.model_type) == MODEL_MAPPING.canonical(expected)
