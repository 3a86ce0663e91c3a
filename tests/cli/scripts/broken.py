"""A logarithm that leaves its domain; the script notices and gives up."""

import torch
from torch import nn

torch.manual_seed(0)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 1)

    def forward(self, x):
        return self.second(torch.log(self.first(x) + 2.0))


model = Net()
optimizer = torch.optim.SGD(model.parameters(), 1e-3)
for step in range(9):
    loss = model(torch.full((64, 4), -50.0 if step == 5 else 1.0)).square().mean()
    optimizer.zero_grad()
    loss.backward()
    if not torch.isfinite(loss):
        raise ValueError("the loss is not finite")
    optimizer.step()
