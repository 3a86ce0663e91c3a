"""A loop with accelerate, accumulating gradients over two micro-batches."""

import sys

import torch
from accelerate import Accelerator
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

torch.manual_seed(0)
accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3))
optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
data = DataLoader(TensorDataset(torch.randn(64, 8), torch.randint(3, (64,))), 8, shuffle=True)
model, optimizer, data = accelerator.prepare(model, optimizer, data)
for _ in range(3):
    for x, y in data:
        with accelerator.accumulate(model):
            loss = F.cross_entropy(model(x), y)
            accelerator.backward(loss)
            accelerator.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
print(f"{loss:.6f}")
if len(sys.argv) > 1:
    torch.save(accelerator.unwrap_model(model).state_dict(), sys.argv[1])
