"""The `# upstream:` comments: each is whole, and fails a test once its library no longer gives the reason for it.

When a test here fails after an update, read the place that it names: the patch may be removed, or its reason stands
elsewhere now. Then correct the comment and the table.
"""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

import pytest
import torch
from torch import nn

ROOT = Path(__file__).resolve().parents[1]
Test = TypeVar("Test", bound=Callable[..., Any])

STILL_SAYS: dict[str, str] = {
    # place: text of the file that its comment names, or file: text
    "compat/optional.py#1": "try: import bitsandbytes as bnb",
    "compat/optional.py#2": "if is_boto3_available(): import boto3",
    "compat/optional.py#3": "if is_scipy_available(): from scipy.optimize import linear_sum_assignment",
    "compat/optional.py#4": "if is_torchao_available(): from torchao.prototype.safetensors.safetensors_support import",
    "compat/optional.py:_ask_when_loaded": "if is_gptqmodel_available() and is_gptqmodel_awq_layer(target_base_layer)",
    "compat/optional.py:import_tensorboard": "try: import botocore.exceptions import boto3",
    "compat/tokenizers.py:drop_copies": "self._merges = merges or []",
    "distributed/deepspeed.py:leave_unimported": "if is_deepspeed_available(): from deepspeed import DeepSpeedEngine",
    "distributed/deepspeed.py:ready_deepspeed": 'if torch.xpu.is_available(): accelerator_name = "xpu"',
    "distributed/launch.py:main": "torch/distributed/elastic/rendezvous/dynamic_rendezvous.py: "
    'os.getenv("TORCH_DISABLE_SHARE_RDZV_TCP_STORE", "0")',
    "evaluation/suite.py:EngineLM._encode_pair": "if n_spaces > 0: continuation = context[-n_spaces:] + continuation",
    "evaluation/suite.py:run_suite": "lm_eval_logger.setLevel(log_level)",
    "exporting/quantize.py:_gptq": "return min(12, max(1, ((os.cpu_count() or 1) + 1) // 2))",
    "exporting/quantize.py:_logs_elsewhere": '_PROJECT_LOG_DIR = Path("logs")',
    "exporting/quantize.py:_off_standard_output": "LogBar.shared()",
    "hub/clients.py:ModelScope.list_files": 'logger.info("Listing %s Root=%s: page %d, %d entries"',
    "hub/clients.py:ModelScope.upload": 'logger.info("Preparing files to upload ...")',
    "models/quantization.py:leave_uncompiled": "self.dequantize_weight = torch_compile(self.dequantize_weight",
    "models/supervised_loss.py:install_supervised_loss#2": "model_args |= set(inspect.signature(self.forward)",
    "models/supervised_loss.py:install_supervised_loss#3": "loss = self.loss_function(logits=logits",
    "planning/trace.py:trace_passes": "class FakeTensorMode(",
    "run/training_arguments.py:build_training_arguments#1": 'os.environ.get("ACCELERATE_BYPASS_DEVICE_MAP", "false")',
    "run/training_arguments.py:build_training_arguments#2": "Parameters would NOT be",
    "run/training_arguments.py:training_arguments": "model = nn.DataParallel(model)",
    "samples/streaming.py:RestoreRandomness.on_step_begin": "elif steps_trained_in_current_epoch == 0: "
    "self._load_rng_state(resume_from_checkpoint)",
    "templates/fast_bpe.py:FastBPE.ids": "return self._core_bpe.encode(text, allowed_special) "
    "except UnicodeEncodeError:",
    "training/optimizers.py:own_optimizer": 'additional_optim_kwargs["warmup_steps"] = ctx.args.warmup_steps',
    "training/resuming.py:follow_rates": "return self._last_lr",
    "training/trainer.py:StageTrainer.__init__": "self.model_accepts_loss_kwargs = unwrapped_model.accepts_loss_kwargs",
    "training/trainer.py:StageTrainer._determine_best_metric": "if self.args.save_strategy == SaveStrategy.BEST: "
    "self.control.should_save = is_new_best_metric",
    "training/trainer.py:StageTrainer._issue_warnings_after_load": 'logger.warning(f"There were missing keys in the',
    "training/trainer.py:StageTrainer._save_checkpoint": "output_dir = os.path.join(run_dir, checkpoint_folder) "
    "self.save_model(output_dir, _internal_call=True)",
    "tuners/lora.py:_saving_adapters_alone": "model.config.__class__.from_pretrained(model_id).vocab_size",
    "tuners/lora.py:load_adapter": 'warn_message = f"Found missing adapter keys',
    "tuners/lora.py:save_as_difference#1": "path_initial_model_for_weight_conversion: Optional[str] = None",
    "tuners/score_adapter.py:active_adapter": "_set_layer_requires_grad(layer, should_require_grad)",
    "tuners/tune.py:add_adalora": "zero-sized lora_A / lora_B tensor indicates that DeepSpeed",
    "tuners/tune.py:keep_unpacked": "and self.support_avx512bf16_for_cpu and not self.training",
    "utils/logging.py#1": "logger.warning(_skip_reason)",
    "utils/logging.py#2": "if issubclass(cls, enum.Enum): log.warning(",
    "utils/logging.py#3": '"Failed to load CPU gemm_4bit_forward from kernels-community',
    "utils/logging.py#4": 'logger.info("Writing the following files:")',
    "utils/logging.py#5": "logging.basicConfig(level=logging.INFO)",
    "utils/logging.py#6": "Setting accelerator to CPU.",
    "utils/logging.py#7": "The pynvml package is deprecated.",
    "utils/logging.py:quiet_gptqmodel": "LogBar.shared()",
    "utils/logging.py:quiet_libraries#2": "MatMul8bitLt: inputs will be cast from",
    "utils/logging.py:quiet_libraries#3": 'logger.warning(f"Device {device} is not available, available devices are',
    "utils/logging.py:quiet_libraries#4": "Paged optimizers are not supported on CPU",
    "utils/logging.py:quiet_libraries#5": "return torch.distributed.all_gather_into_tensor",
    "utils/logging.py:quiet_libraries#6": "keys did not match any targeted module and were ignored",
    "utils/logging.py:quiet_libraries#7": 'getattr(model, "is_gradient_checkpointing", True)',
}

ELSEWHERE: dict[str, str] = {
    "distributed/deepspeed.py:release_dead_builds": (
        "tests/distributed/test_extensions.py::test_torch_still_needs_this"
    ),
}

NOT_YET: tuple[tuple[str, str], ...] = (
    ("inference/continuous.py:Choice.prepare_tensor_args", "upstream's own processors read the same private state"),
    ("models/supervised_loss.py:install_supervised_loss#1", "torch names methods that gather for FSDP2, not for ZeRO"),
    ("planning/trace.py:_quantize", "nothing upstream stands for layers that are 4-bit without values"),
    ("training/trainer.py:StageTrainer._save", "needs two processes with ZeRO or FSDP; the slow tests run them"),
    ("tuners/lora.py:save_as_difference#2", "nothing upstream stands for resuming PiSSA or OLoRA"),
    ("utils/logging.py:quiet_libraries#1", "the warning is in compiled code"),
)
"""(place, reason) of those without such a test."""


@pytest.fixture(scope="module")
def upstream() -> ModuleType:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "docs"))
        return importlib.import_module("gen_upstream")


@pytest.fixture(scope="module")
def patches(upstream: ModuleType) -> list[Any]:
    """All of them, read once: they are in every module."""
    return upstream.patches()


def covers(*places: str) -> Callable[[Test], Test]:
    """Name the places whose reason a test checks; docs/gen_upstream.py reads it."""
    return lambda test: test


def installed(package: str, file: str) -> str:
    """Text of a package's file with single blanks; skips where an optional package is missing."""
    try:
        path = Path(str(metadata.distribution(package).locate_file(file)))
    except metadata.PackageNotFoundError:
        pytest.skip(f"{package} is not installed")
    return " ".join(path.read_text(encoding="utf-8").split())


# The comments, the page and the tables


def test_every_comment_is_a_row(patches: list[Any]) -> None:
    files = (ROOT / "llmtune").rglob("*.py")
    count = sum(file.read_text(encoding="utf-8").count("# upstream:") for file in files)
    assert count == len(patches) >= 80
    page = (ROOT / "docs/upstream.md").read_text(encoding="utf-8")
    rows = [line.split(" | ")[2].strip("`") for line in page.splitlines() if line.startswith("| ")][2:]
    assert sorted(rows) == sorted(patch.place for patch in patches)


def test_packages_are_ours(patches: list[Any]) -> None:
    """Installed at the version in the comment, or optional: a requirement, or one of a requirement's own."""
    names = ("setup.py", "requirements.txt", "requirements-test.txt", "requirements-test-nodeps.txt")
    required = "\n".join((ROOT / name).read_text(encoding="utf-8") for name in names).lower().replace("-", "_")
    of_others = {"modelscope-hub": "modelscope", "pynvml": "gptqmodel", "tokenizers": "transformers"}
    for patch in patches:
        name = of_others.get(patch.package, patch.package).lower().replace("-", "_")
        assert re.search(rf"\b{name}\b", required), patch


def test_links_are_issues_or_installed_files(upstream: ModuleType, patches: list[Any]) -> None:
    for patch in patches:
        if patch.file is None:
            assert patch.link == "no issue" or upstream.ISSUE.fullmatch(patch.link), patch
            continue
        try:
            path = metadata.distribution(patch.package).locate_file(patch.file)
        except metadata.PackageNotFoundError:
            continue
        assert Path(str(path)).is_file(), patch


def test_every_place_has_a_test_or_a_reason(upstream: ModuleType, patches: list[Any]) -> None:
    places, untested = {patch.place for patch in patches}, {place for place, _ in NOT_YET}
    assert upstream.tests().keys() & untested == set()
    assert upstream.tests().keys() | untested == places
    for test in ELSEWHERE.values():
        file, _, name = test.partition("::")
        assert f"def {name}(" in (ROOT / file).read_text(encoding="utf-8")


# The reasons, most of them by what upstream's files say


@pytest.mark.parametrize("place", STILL_SAYS)
def test_upstream_still_says_so(place: str, patches: list[Any]) -> None:
    patch = next(patch for patch in patches if patch.place == place)
    file, _, text = STILL_SAYS[place].rpartition(".py: ")
    assert text in installed(patch.package, f"{file}.py" if file else patch.file), patch


@covers("distributed/fsdp.py:let_cpus_shard")
def test_accelerate_has_no_fsdp_on_cpus() -> None:
    from accelerate.state import AcceleratorState

    source = inspect.getsource(inspect.unwrap(AcceleratorState.__init__))
    assert "self.fsdp_plugin = fsdp_plugin" in source
    assert "MULTI_CPU" not in source


@covers("distributed/fsdp.py:BackgroundSaves.divert")
def test_accelerate_saves_shards_in_the_foreground() -> None:
    text = installed("accelerate", "accelerate/utils/fsdp_utils.py")
    assert "dist_cp.save(" in text
    assert "async_save" not in text


class _Counted(torch.utils.data.Sampler):
    epoch = 0

    def __iter__(self):
        return iter(range(16))

    def __len__(self) -> int:
        return 16

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch


@covers("samples/sampler.py:SetEpoch.on_epoch_begin")
def test_accelerate_loses_the_sampler_of_a_resumed_rank() -> None:
    from accelerate.data_loader import prepare_data_loader, skip_first_batches
    from torch.utils.data import DataLoader

    sampler = _Counted()
    whole = prepare_data_loader(DataLoader(range(16), sampler=sampler, batch_size=2), num_processes=2, process_index=0)
    whole.set_epoch(3)
    assert sampler.epoch == 3
    skip_first_batches(whole, 1).set_epoch(5)
    assert sampler.epoch == 3


TRAINER = "transformers/trainer.py"


@covers(
    "training/trainer.py:StageTrainer._get_num_items_in_batch",
    "training/trainer.py:StageTrainer._get_train_sampler",
    "training/trainer.py:StageTrainer._get_eval_sampler",
    "training/trainer.py:StageTrainer._load_from_checkpoint",
    "training/trainer.py:StageTrainer._load_optimizer_and_scheduler",
    "training/trainer.py:StageTrainer._load_scaler",
    "training/trainer.py:StageTrainer._load_rng_state",
)
@pytest.mark.parametrize(
    "name",
    [
        "get_num_items_in_batch",
        "get_train_sampler",
        "get_eval_sampler",
        "load_from_checkpoint",
        "load_optimizer_and_scheduler",
        "load_scaler",
        "load_rng_state",
    ],
)
def test_trainer_has_it_under_a_private_name_only(name: str) -> None:
    text = installed("transformers", TRAINER)
    assert f"def _{name}(" in text
    assert f"self._{name}" in text
    assert f"def {name}(" not in text


@covers(
    "merging/weights.py:Weights.as_in_files",
    "merging/weights.py:Weights.file_name",
    "merging/weights.py:_groups",
)
def test_conversion_of_single_tensors_is_not_public() -> None:
    import transformers
    from transformers import core_model_loading

    for name in ("revert_weight_conversion", "rename_source_key"):
        assert hasattr(core_model_loading, name)
        assert not hasattr(transformers, name)


@covers("merging/meta_model.py:attach_adapters")
def test_peft_moves_adapters_to_meta() -> None:
    from peft import LoraConfig, get_peft_model

    base: Any = nn.Sequential(nn.Linear(4, 4, device="meta"))
    layer = get_peft_model(base, LoraConfig(target_modules=["0"], r=2), low_cpu_mem_usage=True).base_model.model[0]
    layer.lora_A["default"].weight = nn.Parameter(torch.zeros(2, 4))
    layer.lora_B["default"].weight = nn.Parameter(torch.zeros(4, 2))
    layer._move_adapter_to_device_of_base_layer("default")
    assert layer.lora_A["default"].weight.is_meta


@covers("tuners/tune.py:_regularised_in_training_alone")
def test_adalora_is_regularised_in_evaluation() -> None:
    from peft import AdaLoraModel

    source = inspect.getsource(AdaLoraModel.forward)
    assert "orth_reg_weight" in source
    assert "training" not in source


@covers("planning/trace.py:_expert_matmuls_in_any_dtype")
@pytest.mark.filterwarnings("ignore")
def test_experts_are_not_traceable_in_fp32() -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode
    from transformers.integrations import moe

    with FakeTensorMode(), pytest.raises(RuntimeError, match="BF16"):
        moe._grouped_mm(torch.empty(8, 16), torch.empty(2, 16, 16), torch.empty(2, dtype=torch.int32))


@covers("inference/continuous.py:ContinuousBatcher.__init__")
def test_continuous_batching_takes_no_processor() -> None:
    from transformers import GenerationMixin

    assert "logits_processor" not in inspect.signature(GenerationMixin.init_continuous_batching).parameters


@covers("templates/encode.py:TextEncoder._exact_backend")
def test_post_processor_trims_offsets() -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    tokenizer = Tokenizer(models.BPE({"a": 0, "Ġ": 1, "Ġa": 2}, [("Ġ", "a")]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    assert tokenizer.encode("a a", add_special_tokens=False).offsets == [(0, 1), (2, 3)]
    tokenizer.post_processor = None
    assert tokenizer.encode("a a", add_special_tokens=False).offsets == [(0, 1), (1, 3)]


@covers("templates/fast_bpe.py:FastBPE.__init__")
def test_ranks_have_no_public_name() -> None:
    tiktoken = pytest.importorskip("tiktoken")
    assert not hasattr(tiktoken.Encoding, "mergeable_ranks")


@covers(
    "merging/merge.py:_Streamed._rounded",
    "models/layers.py:without_compiling",
    "models/loading.py:from_config",
    "models/ports/modeling_llama_alibi.py:LlamaAlibiModel.__init__",
    "planning/trace.py:shapes",
    "planning/trace.py:_without_mask",
)
def test_private_attributes_have_no_public_name() -> None:
    from transformers import PreTrainedConfig, PreTrainedModel

    for owner, name in (
        (PreTrainedConfig, "attn_implementation"),
        (PreTrainedModel, "from_config"),
        (PreTrainedModel, "keep_in_fp32_modules"),
        (PreTrainedModel, "keep_in_fp32_modules_strict"),
        (nn.Module, "compiled_call_impl"),
    ):
        assert hasattr(owner, f"_{name}")
        assert not hasattr(owner, name)


@covers(
    "data/image_marks.py:with_image_folder",
    "data/mixing.py:_generator",
    "data/mixing.py:_joined",
    "data/mixing.py:_select",
    "data/row_cache.py:fill_identity.fill",
    "data/row_cache.py:open_cached",
    "samples/store.py:_key",
)
def test_fingerprints_of_datasets_are_private() -> None:
    import datasets

    for maker in (datasets.concatenate_datasets, datasets.Dataset.from_file):
        assert not [name for name in inspect.signature(maker).parameters if "fingerprint" in name]
    assert not hasattr(datasets.Dataset, "fingerprint")
