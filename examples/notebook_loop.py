"""A training loop of one's own: llmtune brings the model, the template and the rows, plain torch does the rest."""

import random

import torch

from llmtune import get_dataset, get_model_tokenizer, get_template

torch.manual_seed(0)
model, tokenizer = get_model_tokenizer("llmtune-tiny", torch_dtype="fp32")
template = get_template("chatml", tokenizer, max_length=256)
train, validation = get_dataset("tiny-qa#200", dataset_test_ratio=0.1, dataset_seed=0)

print(template.render(train[0]))  # the text that the model sees
samples = [
    template.encode(row) for row in train
]  # {"input_ids": [...], "labels": [...]}, -100 except on trainable tokens


def batch_of(chosen):
    """Samples padded on the right to the longest, [B, T]."""
    length = max(len(sample["input_ids"]) for sample in chosen)
    fill = {"input_ids": tokenizer.pad_token_id, "labels": -100}
    return {
        name: torch.tensor([sample[name] + [value] * (length - len(sample[name])) for sample in chosen])
        for name, value in fill.items()
    }


optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
for epoch in range(5):
    random.Random(epoch).shuffle(samples)
    losses = []
    for start in range(0, len(samples), 16):
        loss = model(**batch_of(samples[start : start + 16])).loss  # the model shifts the labels itself
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    print(f"epoch {epoch + 1}: loss {sum(losses) / len(losses):.3f}")

prompt = template.encode({"query": "What is 2 plus 3?"}, generation=True)["input_ids"]
answer = model.eval().generate(torch.tensor([prompt]), max_new_tokens=16, do_sample=False)
print(tokenizer.decode(answer[0, len(prompt) :], skip_special_tokens=True))
