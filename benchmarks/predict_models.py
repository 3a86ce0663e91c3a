"""The families that predict is scored on: small, but of the widths and kinds that people train."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from benchmarks.predict_score import Case
from torch import Tensor, nn

init = nn.init


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _randn(*shape: int) -> Callable[[torch.Generator], Tensor]:
    return lambda generator: torch.randn(*shape, generator=generator)


def _labels(n: int, *shape: int, seed: int = 3) -> Tensor:
    return torch.randint(n, shape, generator=_generator(seed))


def _cross_entropy(batch: int) -> Callable[[Any], Tensor]:
    labels = _labels(10, batch)
    return lambda output: F.cross_entropy(output if isinstance(output, Tensor) else output.logits, labels)


# Feed-forward


def mlp(
    activation: Callable[[], nn.Module],
    fill: Callable[[Tensor], Any] | None,
    depth: int,
    width: int = 256,
    norm: Callable[[int], nn.Module] | None = None,
) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        layers: list[nn.Module] = []
        for _ in range(depth):
            layer = nn.Linear(width, width)
            if fill is not None:
                fill(layer.weight)
            layers += [layer, *([norm(width)] if norm else []), activation()]
        return nn.Sequential(*layers, nn.Linear(width, 10))

    return build


class Block(nn.Module):
    """x + W φ(V norm(x)), or norm(x + W φ(V x))."""

    def __init__(self, width: int, norm: Callable[[int], nn.Module], *, before: bool) -> None:
        super().__init__()
        self.norm, self.up, self.down, self.before = (
            norm(width),
            nn.Linear(width, width),
            nn.Linear(width, width),
            before,
        )

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor
        if self.before:
            y = x + self.down(F.gelu(self.up(self.norm(x))))
        else:
            y = self.norm(x + self.down(F.gelu(self.up(x))))
        return y


def residual(
    norm: Callable[[int], nn.Module], depth: int, *, before: bool, width: int = 256
) -> Callable[[], nn.Module]:
    return lambda: nn.Sequential(
        nn.Linear(width, width),
        *[Block(width, norm, before=before) for _ in range(depth)],
        nn.Linear(width, 10),
    )


class TiedAutoencoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Parameter(torch.empty(256, 512)), nn.Parameter(torch.empty(128, 256))
        init.xavier_normal_(self.first)
        init.xavier_normal_(self.second)

    def forward(self, x: Tensor) -> Tensor:
        code = torch.tanh(F.linear(torch.tanh(F.linear(x, self.first)), self.second))
        return F.linear(torch.tanh(F.linear(code, self.second.t())), self.first.t())


# Convolutional


def cnn(
    norm: Callable[[int], nn.Module] | None = None, width: int = 128, depth: int = 8
) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        layers: list[nn.Module] = [nn.Conv2d(3, width, 3, padding=1), nn.ReLU()]
        for i in range(depth):
            layers.append(nn.Conv2d(width, width, 3, padding=1, stride=2 if i in (2, 5) else 1))
            layers += [norm(width)] if norm else []
            layers.append(nn.ReLU())
        model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 10))
        for module in model:
            if isinstance(module, nn.Conv2d):
                init.kaiming_normal_(module.weight, nonlinearity="relu")
        return model

    return build


class PreActivation(nn.Module):
    """He et al., "Identity mappings in deep residual networks", 2016, Figure 1b."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.inside = nn.Sequential(
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1),
        )

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = x + self.inside(x)
        return y


def residual_cnn(width: int = 128, blocks: int = 6) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, width, 3, padding=1),
        *[PreActivation(width) for _ in range(blocks)],
        nn.BatchNorm2d(width),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(width, 10),
    )


class Basic(nn.Module):
    """He et al. 2016, Figure 2."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs)
        self.conv2, self.bn2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False), nn.BatchNorm2d(outputs)
        self.skip: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.skip = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.skip(x) + self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))))


def resnet() -> nn.Module:
    layers: list[nn.Module] = [nn.Conv2d(3, 64, 3, 1, 1, bias=False), nn.BatchNorm2d(64), nn.ReLU()]
    width = 64
    for outputs, stride in ((64, 1), (64, 1), (128, 2), (128, 1), (256, 2), (256, 1)):
        layers.append(Basic(width, outputs, stride))
        width = outputs
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 10))


def _double(inputs: int, outputs: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, padding=1),
        nn.GroupNorm(8, outputs),
        nn.SiLU(),
        nn.Conv2d(outputs, outputs, 3, padding=1),
        nn.GroupNorm(8, outputs),
        nn.SiLU(),
    )


class UNet(nn.Module):
    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.down1, self.down2, self.middle = (
            _double(3, width),
            _double(width, 2 * width),
            _double(2 * width, 2 * width),
        )
        self.up1, self.join1 = nn.ConvTranspose2d(2 * width, 2 * width, 2, 2), _double(4 * width, 2 * width)
        self.up2, self.join2 = nn.Upsample(scale_factor=2), _double(3 * width, width)
        self.pool, self.out = nn.MaxPool2d(2), nn.Conv2d(width, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        a = self.down1(x)
        b = self.down2(self.pool(a))
        y = self.join1(torch.cat([self.up1(self.middle(self.pool(b))), b], 1))
        out: Tensor = self.out(self.join2(torch.cat([self.up2(y), a], 1)))
        return out


def _dcgan(*layers: nn.Module) -> nn.Module:
    model = nn.Sequential(*layers)
    for module in model:
        if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
            init.normal_(module.weight, 0, 0.02)
        if isinstance(module, nn.BatchNorm2d):
            init.normal_(module.weight, 1, 0.02)
    return model


def critic() -> nn.Module:
    """Radford et al. 2016."""
    return _dcgan(
        nn.Conv2d(3, 64, 4, 2, 1, bias=False),
        nn.LeakyReLU(0.2),
        nn.Conv2d(64, 128, 4, 2, 1, bias=False),
        nn.BatchNorm2d(128),
        nn.LeakyReLU(0.2),
        nn.Conv2d(128, 256, 4, 2, 1, bias=False),
        nn.BatchNorm2d(256),
        nn.LeakyReLU(0.2),
        nn.Conv2d(256, 1, 4, 1, 0, bias=False),
        nn.Flatten(0),
    )


def generator() -> nn.Module:
    return _dcgan(
        nn.ConvTranspose2d(100, 256, 4, 1, 0, bias=False),
        nn.BatchNorm2d(256),
        nn.ReLU(),
        nn.ConvTranspose2d(256, 128, 4, 2, 1, bias=False),
        nn.BatchNorm2d(128),
        nn.ReLU(),
        nn.ConvTranspose2d(128, 64, 4, 2, 1, bias=False),
        nn.BatchNorm2d(64),
        nn.ReLU(),
        nn.ConvTranspose2d(64, 3, 4, 2, 1, bias=False),
        nn.Tanh(),
    )


# Sequences


class Recurrent(nn.Module):
    def __init__(self, kind: str, last: bool, width: int = 128) -> None:
        super().__init__()
        self.cell, self.out, self.last = (
            getattr(nn, kind)(32, width, batch_first=True),
            nn.Linear(width, 10),
            last,
        )

    def forward(self, x: Tensor) -> Tensor:
        states = self.cell(x)[0]
        y: Tensor = self.out(states[:, -1] if self.last else states.mean(1))
        return y


class Encoder(nn.Module):
    """``nn.TransformerEncoder`` as shipped: all layers start as copies of one."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(256, 4, 1024, 0.0, batch_first=True)
        self.layers, self.out = (
            nn.TransformerEncoder(layer, 6, enable_nested_tensor=False),
            nn.Linear(256, 10),
        )

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.out(self.layers(x).mean(1))
        return y


def families() -> Iterator[Case]:
    flat, ce = _randn(64, 256), _cross_entropy(64)
    fills: dict[str, Callable[[Tensor], Any] | None] = {
        "default": None,
        "He": init.kaiming_normal_,
        "Glorot": init.xavier_uniform_,
        "orthogonal": init.orthogonal_,
        "truncated": lambda w: init.trunc_normal_(w, std=0.08),
    }
    for activation in (nn.ReLU, nn.Tanh, nn.Sigmoid, nn.GELU, nn.SiLU, nn.ELU):
        for name, fill in fills.items():
            for depth in (10, 50):
                yield Case(
                    f"MLP {activation.__name__} {name} {depth}",
                    mlp(activation, fill, depth),
                    flat,
                    ce,
                    deep=True,
                )
    norms: dict[str, Callable[[int], nn.Module]] = {
        "LN": nn.LayerNorm,
        "BN": nn.BatchNorm1d,
        "RMS": nn.RMSNorm,
        "GN": lambda n: nn.GroupNorm(8, n),
    }
    for name, norm in norms.items():
        for depth in (10, 30):
            plain = mlp(nn.ReLU, init.kaiming_normal_, depth, norm=norm)
            yield Case(f"{name} ReLU {depth}", plain, flat, ce, deep=True)
        yield Case(f"pre-{name} residual 30", residual(norm, 30, before=True), flat, ce, deep=True)
    yield Case("post-LN residual 30", residual(nn.LayerNorm, 30, before=False), flat, ce, deep=True)
    images = _randn(16, 3, 16, 16)
    yield Case("plain CNN", cnn(), images, _cross_entropy(16))
    yield Case("BN CNN", cnn(nn.BatchNorm2d), images, _cross_entropy(16))
    yield Case("residual CNN", residual_cnn, images, _cross_entropy(16))
    yield Case("ResNet basic", resnet, images, _cross_entropy(16))
    picture = torch.randn(8, 3, 16, 16, generator=_generator(5))
    yield Case("U-Net", UNet, lambda g: picture, lambda o: F.mse_loss(o, picture))
    real = lambda o: F.binary_cross_entropy_with_logits(o, torch.ones_like(o))  # noqa: E731
    yield Case("DCGAN critic", critic, _randn(16, 3, 32, 32), real)
    yield Case("DCGAN generator", lambda: nn.Sequential(generator(), critic()), _randn(16, 100, 1, 1), real)
    flat_picture = torch.randn(32, 512, generator=_generator(1006))  # no seed of weights: they begin alike
    yield Case(
        "tied autoencoder", TiedAutoencoder, lambda g: flat_picture, lambda o: F.mse_loss(o, flat_picture)
    )
    for kind in ("RNN", "GRU", "LSTM"):
        for last in (True, False):
            yield Case(
                f"{kind} {'last' if last else 'mean'}",
                lambda k=kind, e=last: Recurrent(k, e),  # type: ignore[misc]
                _randn(16, 16, 32),
                _cross_entropy(16),
            )
    yield Case("TransformerEncoder", Encoder, _randn(16, 16, 256), _cross_entropy(16))
    yield from _transformers()


VOCABULARY = 500


def _transformers() -> Iterator[Case]:
    import transformers as t

    ids, other = _labels(VOCABULARY, 4, 32, seed=7), _labels(VOCABULARY, 4, 32, seed=8)

    def next_token(output: Any) -> Tensor:
        return F.cross_entropy(output.logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())

    def every_token(output: Any) -> Tensor:
        return F.cross_entropy(output.logits.flatten(0, 1), other.flatten())

    tokens = lambda g: {"input_ids": ids}  # noqa: E731
    pixels = lambda g: {"pixel_values": torch.randn(8, 3, 32, 32, generator=g)}  # noqa: E731
    none: dict[str, Any] = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    quiet: dict[str, Any] = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    gpt2 = t.GPT2Config(
        vocab_size=VOCABULARY,
        n_embd=256,
        n_layer=6,
        n_head=4,
        n_positions=64,
        tie_word_embeddings=False,
        bos_token_id=0,
        eos_token_id=0,
        **none,
    )
    yield Case("GPT-2", lambda: t.GPT2LMHeadModel(gpt2), tokens, next_token)
    bert = t.BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=256,
        num_hidden_layers=6,
        num_attention_heads=4,
        intermediate_size=1024,
        tie_word_embeddings=False,
        **quiet,
    )
    yield Case("BERT", lambda: t.BertForMaskedLM(bert), tokens, every_token)
    llama = t.LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=256,
        num_hidden_layers=6,
        num_attention_heads=8,
        num_key_value_heads=4,
        intermediate_size=688,
    )
    yield Case("Llama", lambda: t.LlamaForCausalLM(llama), tokens, next_token)
    t5 = t.T5Config(
        vocab_size=VOCABULARY, d_model=256, d_kv=32, num_layers=3, num_heads=8, d_ff=1024, dropout_rate=0
    )
    yield Case(
        "T5",
        lambda: t.T5ForConditionalGeneration(t5),
        lambda g: {"input_ids": ids, "decoder_input_ids": other},
        every_token,
    )
    mixtral = t.MixtralConfig(
        vocab_size=VOCABULARY,
        hidden_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=256,
        num_local_experts=4,
    )
    yield Case("Mixtral", lambda: t.MixtralForCausalLM(mixtral), tokens, next_token)
    vit = t.ViTConfig(  # type: ignore[call-arg]
        image_size=32,
        patch_size=4,
        hidden_size=256,
        num_hidden_layers=6,
        num_attention_heads=4,
        intermediate_size=1024,
        num_labels=10,
        **quiet,
    )
    yield Case("ViT", lambda: t.ViTForImageClassification(vit), pixels, _cross_entropy(8))
    swin = t.SwinConfig(  # type: ignore[call-arg]
        image_size=32,
        patch_size=2,
        embed_dim=64,
        depths=[2, 2],
        num_heads=[2, 4],
        window_size=4,
        num_labels=10,
        drop_path_rate=0.0,
    )
    yield Case("Swin", lambda: t.SwinForImageClassification(swin), pixels, _cross_entropy(8))
    bottleneck = t.ResNetConfig(  # type: ignore[call-arg]
        embedding_size=64, hidden_sizes=[128, 256], depths=[2, 2], num_labels=10
    )
    yield Case(
        "ResNet bottleneck", lambda: t.ResNetForImageClassification(bottleneck), pixels, _cross_entropy(8)
    )
    convnext = t.ConvNextConfig(  # type: ignore[call-arg]
        hidden_sizes=[128, 256], depths=[3, 3], num_stages=2, patch_size=2, image_size=32, num_labels=10
    )
    yield Case("ConvNeXt", lambda: t.ConvNextForImageClassification(convnext), pixels, _cross_entropy(8))
