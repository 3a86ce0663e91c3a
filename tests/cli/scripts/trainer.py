"""A small GPT-2 from a random start, trained by the Trainer of transformers."""

import sys
import tempfile

import torch
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments, set_seed

set_seed(0)
config = GPT2Config(
    vocab_size=32, n_positions=16, n_embd=16, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0
)
model = GPT2LMHeadModel(config)
tokens = torch.randint(32, (48, 12))
data = [{"input_ids": row, "labels": row} for row in tokens]
with tempfile.TemporaryDirectory() as folder:
    arguments = TrainingArguments(
        folder,
        max_steps=8,
        per_device_train_batch_size=4,
        gradient_accumulation_steps=2,
        use_cpu=True,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        logging_steps=4,
        seed=0,
    )
    trainer = Trainer(model=model, args=arguments, train_dataset=data)
    result = trainer.train()
print(f"{result.training_loss:.6f}")
if len(sys.argv) > 1:
    torch.save(model.state_dict(), sys.argv[1])
