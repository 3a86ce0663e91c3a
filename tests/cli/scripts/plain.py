"""An ordinary training script: digits out of noise, with plain PyTorch."""

import argparse
import sys

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

parser = argparse.ArgumentParser()
parser.add_argument("--steps", type=int, default=12)
parser.add_argument("--save")
parser.add_argument("--exit", type=int, default=0)
arguments = parser.parse_args()

torch.manual_seed(0)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Dropout(0.1), nn.Linear(16, 16), nn.ReLU())
        self.head = nn.Linear(16, 3)

    def forward(self, x):
        return self.head(self.body(x))


data = TensorDataset(torch.randn(96, 8), torch.randint(3, (96,)))
model = Net()
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
step = 0
while step < arguments.steps:
    for x, y in DataLoader(data, 16, shuffle=True):
        loss = F.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        step += 1
    with torch.no_grad():
        print(
            f"step {step} accuracy {(model(data.tensors[0]).argmax(1) == data.tensors[1]).float().mean():.6f}"
        )
print("done", file=sys.stderr)
if arguments.save:
    torch.save(model.state_dict(), arguments.save)
sys.exit(arguments.exit)
