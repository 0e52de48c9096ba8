"""Fine-tune and ask, in Python. Runs as it is: nothing is downloaded."""

from llmtune import InferArguments, SftArguments, infer, sft

result = sft(
    SftArguments(
        model_type="llmtune-tiny",
        sft_type="full",
        dataset=["tiny-qa"],
        num_train_epochs=8,
        batch_size=16,
        gradient_accumulation_steps=1,
        learning_rate=1e-3,
    )
)
print("eval_loss", result.metrics["eval_loss"], "in", result.output_dir)

# The checkpoint knows its model, template and data: the rows that were held out are answered.
answers = infer(InferArguments(ckpt_dir=str(result.checkpoint), do_sample=False, show_dataset_sample=5))
print(answers[0]["query"], "->", answers[0]["response"], "| expected:", answers[0]["label"])
