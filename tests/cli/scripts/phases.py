"""Two phases with an optimizer each; the first one's optimizers come one by one, around a dry run."""

import torch
from torch import nn

torch.manual_seed(0)
body, head = nn.Linear(4, 8), nn.Linear(8, 1)
body_optimizer = torch.optim.SGD(body.parameters(), 1e-2)
head(body(torch.ones(1, 4)))
head_optimizer = torch.optim.SGD(head.parameters(), 1e-2)
for _ in range(4):
    head(body(torch.randn(8, 4))).square().mean().backward()
    body_optimizer.step()
    head_optimizer.step()
model = nn.Sequential(body, nn.Tanh(), head)
optimizer = torch.optim.Adam(model.parameters())
for _ in range(3):
    optimizer.zero_grad()
    model(torch.randn(8, 4)).square().mean().backward()
    optimizer.step()
