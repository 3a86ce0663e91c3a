"""A script with two parameter groups and a scheduler; its options do by hand what patches do."""

import argparse

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

parser = argparse.ArgumentParser()
parser.add_argument("--depth", type=int, default=2)
parser.add_argument("--act", default="ReLU")
parser.add_argument("--optimizer", default="SGD")
parser.add_argument("--lr", type=float, default=0.1)
parser.add_argument("--loss", default="cross_entropy")
parser.add_argument("--steps", type=int, default=60)
parser.add_argument("--crash", type=int, default=-1)
parser.add_argument("--unseeded", action="store_true")
parser.add_argument("--fixed", action="store_true")
arguments = parser.parse_args()
if not arguments.unseeded:
    torch.manual_seed(0)
draws = torch.Generator().manual_seed(0) if arguments.fixed else None


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        parts = [p for _ in range(arguments.depth) for p in (nn.Linear(16, 16), getattr(nn, arguments.act)())]
        self.body = nn.Sequential(*parts)
        self.head = nn.Linear(16, 3)

    def forward(self, x):
        return self.head(self.body(x))


labels = torch.randint(3, (256,), generator=draws)
inputs = 2.0 * torch.randn(3, 16, generator=draws)[labels] + torch.randn(256, 16, generator=draws)
model = Net()
if arguments.fixed:
    for parameter in model.parameters():
        nn.init.normal_(parameter, 0.0, 0.3, generator=draws)
groups = [{"params": model.body.parameters()}, {"params": model.head.parameters(), "lr": arguments.lr / 2}]
optimizer = getattr(torch.optim, arguments.optimizer)(groups, lr=arguments.lr)
scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 5, 0.9)
loader = DataLoader(TensorDataset(inputs, labels), 32, shuffle=not arguments.fixed)
step = 0
while step < arguments.steps:
    for x, y in loader:
        output = model(x)
        if arguments.loss == "cross_entropy":
            loss = F.cross_entropy(output, y)
        elif arguments.loss == "twice":
            loss = F.cross_entropy(output.softmax(1), y)
        else:
            loss = -output.log_softmax(1)[torch.arange(len(y)), y].mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step()
        print(f"step {step} loss {loss.item()!r}")
        if step == arguments.crash:
            raise RuntimeError("the disk is full")
        step += 1
accuracy = (model(inputs).argmax(1) == labels).float().mean()
print(f"accuracy {accuracy:.4f}")
torch.save(model.state_dict(), "model.pt")
