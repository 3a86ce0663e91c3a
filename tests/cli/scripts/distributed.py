"""DistributedDataParallel over gloo, started by torchrun."""

import os
import sys

import torch
import torch.distributed as dist
from torch import nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

dist.init_process_group("gloo")
rank = dist.get_rank()
torch.manual_seed(0)
model = DistributedDataParallel(nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 2)))
optimizer = torch.optim.SGD(model.parameters(), 0.1)
torch.manual_seed(1 + rank)
for _ in range(10):
    x, y = torch.randn(8, 6), torch.randint(2, (8,))
    loss = F.cross_entropy(model(x), y)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
if rank == 0:
    print(f"{loss:.6f}")
    if len(sys.argv) > 1:
        torch.save(model.module.state_dict(), sys.argv[1])
dist.barrier()
dist.destroy_process_group()
assert int(os.environ["RANK"]) == rank
