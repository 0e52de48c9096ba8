"""XVERSE, PolyLM and SeqGPT: the reference's other models."""

from llmtune.models.families.common import QKV, REFERENCE
from llmtune.models.info import register_model

for _size in ("7B", "13B"):
    for _suffix, _template in (("", "default-generation"), ("-Chat", "xverse")):
        register_model(
            f"xverse-{_size}{_suffix}".lower(),
            model_id_or_path=f"xverse/XVERSE-{_size}{_suffix}",
            hf_model_id=f"xverse/XVERSE-{_size}{_suffix}",
            template=_template,
            lora_target_modules=QKV,
            architecture="XverseForCausalLM",
            source=REFERENCE,
        )
register_model(
    "polylm-13b",
    model_id_or_path="damo/nlp_polylm_13b_text_generation",
    hf_model_id="DAMO-NLP-MT/polylm-13b",
    lora_target_modules=("c_attn",),
    architecture="GPT2LMHeadModel",
    source=REFERENCE,
)
register_model(
    "seqgpt-560m",
    model_id_or_path="damo/nlp_seqgpt-560m",
    hf_model_id="DAMO-NLP/SeqGPT-560M",
    lora_target_modules=("query_key_value",),
    architecture="BloomForCausalLM",
    source=REFERENCE,
)
