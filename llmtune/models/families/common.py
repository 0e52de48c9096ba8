"""Constants shared by several families."""

QKV = ("q_proj", "k_proj", "v_proj")

REFERENCE = "modelscope/swift, examples/pytorch/llm, October 2023"
REGISTRY = "the model registry of modelscope/ms-swift 3, swift/llm/model/model"
