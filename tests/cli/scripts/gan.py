"""A GAN on points of a circle: two models, two optimizers."""

import sys

import torch
from torch import nn
from torch.nn import functional as F

torch.manual_seed(0)
generator = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 2))
discriminator = nn.Sequential(nn.Linear(2, 16), nn.LeakyReLU(0.2), nn.Linear(16, 1))
g_optimizer = torch.optim.Adam(generator.parameters(), 1e-3)
d_optimizer = torch.optim.Adam(discriminator.parameters(), 1e-3)

for _ in range(15):
    angle = torch.rand(32, 1) * 6.283
    real = torch.cat([angle.cos(), angle.sin()], 1)
    fake = generator(torch.randn(32, 4))
    d_optimizer.zero_grad()
    d_loss = F.softplus(-discriminator(real)).mean() + F.softplus(discriminator(fake.detach())).mean()
    d_loss.backward()
    d_optimizer.step()
    g_optimizer.zero_grad()
    g_loss = F.softplus(-discriminator(fake)).mean()
    g_loss.backward()
    g_optimizer.step()
print(f"{d_loss:.6f} {g_loss:.6f}")
if len(sys.argv) > 1:
    torch.save([generator.state_dict(), discriminator.state_dict()], sys.argv[1])
