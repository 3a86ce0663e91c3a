"""``evenflow predict TARGET``: every way to name one, the depth table, and mistakes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from evenflow.cli import main

NETS = """
import torch
from torch import nn

class Wide(nn.Module):
    def __init__(self, num_layers=3):
        super().__init__()
        layers = [nn.Sequential(nn.Linear(64, 64), nn.Sigmoid()) for _ in range(num_layers)]
        self.layers = nn.Sequential(*layers)

    def forward(self, x):
        return self.layers(x)

def needs_depth(depth):
    return Wide(depth)

def huge(depth=2):
    assert torch.empty(0).is_meta, "weights would be made"
    return nn.Sequential(*[nn.Linear(10**6, 10**6) for _ in range(depth)])

def whole():
    return Wide(20), torch.randn(32, 64)
"""


@pytest.fixture
def nets(tmp_path: Path) -> Path:
    path = tmp_path / "nets.py"
    path.write_text(NETS)
    return path


def _predict(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["predict", *map(str, arguments)])


def test_a_class_is_predicted_without_weights(nets: Path) -> None:
    result = _predict(f"{nets}:huge", "--input", f"8x{10**6}")
    assert result.exit_code == 0, result.output
    assert "predicted, nothing was run" in result.output


def test_a_function_with_its_batch_is_judged_by_the_rules(nets: Path) -> None:
    result = _predict(f"{nets}:whole", "--json")
    report = json.loads(result.stdout)
    assert result.exit_code == 1
    assert "EF101" in [finding["code"] for finding in report["findings"]]
    assert report["flow"]["source"] == "predicted"


def test_against_lays_a_measured_batch_over(nets: Path) -> None:
    report = json.loads(_predict(f"{nets}:Wide", "--input", "32x64", "--against", "--json").stdout)
    assert report["flow"]["source"] == "measured"
    places = {layer["place"]: layer for layer in report["predicted"]["layers"]}
    for layer in report["flow"]["layers"]:
        real, predicted = layer["activation_gradient"], places[layer["place"]]["activation_gradient"]
        assert real["rms"] == pytest.approx(predicted["rms"], rel=0.3)


def test_depths_make_a_table_with_its_law(nets: Path) -> None:
    result = _predict(f"{nets}:Wide", "--input", "32x64", "--depth", "3:12")
    assert result.exit_code == 0, result.output
    assert "decades per layer towards the input" in result.output
    firsts = [line.split()[0].rstrip("*") for line in result.output.splitlines() if line.strip()]
    assert [first for first in firsts if first.isdigit()] == ["3", "4", "5", "7", "9", "12"]
    assert _predict(f"{nets}:needs_depth", "--input", "32x64", "--depth", "2,4").exit_code == 0


def test_a_config_is_a_target(tmp_path: Path) -> None:
    pytest.importorskip("transformers", reason="the package transformers is not installed")
    path = tmp_path / "config.json"
    config = {"model_type": "gpt2", "n_layer": 3, "n_embd": 64, "n_head": 2, "vocab_size": 100}
    path.write_text(json.dumps({**config, "n_positions": 16, "architectures": ["GPT2LMHeadModel"]}))
    result = _predict(path)
    assert result.exit_code == 0, result.output
    assert "of its 3 blocks changes the gradient's RMS by" in " ".join(result.output.split())
    table = _predict(path, "--depth", "2,3").output
    assert "Slope:" in table


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--input", "32x64", "--depth", "9:3"], "expected depths from 1 upwards, smallest first"),
        (["--input", "32x64", "--depth", "x"], "expected LOW:HIGH or a list such as 10,20,40"),
        (["--input", "32x64", "--depth", "2:4", "--against"], "--against measures one model"),
        ([], "gives a model but no batch"),
    ],
)
def test_mistakes_are_named(nets: Path, arguments: list[str], message: str) -> None:
    result = _predict(f"{nets}:Wide", *arguments)
    assert result.exit_code == 2
    assert message in " ".join(result.output.split())


def test_a_target_without_a_depth_is_told(nets: Path) -> None:
    result = _predict(f"{nets}:whole", "--depth", "2:4")
    assert result.exit_code == 2
    assert "has no depth to set" in result.output
