"""JSON: strict, complete, and of a shape that scripts can rely on."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from tests.report import samples

from evenflow.diagnose.finding import Diagnosis
from evenflow.report import ReportContent, render_json
from evenflow.report.json import SCHEMA_VERSION


def strict(text: str) -> dict[str, Any]:
    """Parse JSON as the standard has it: no NaN, no duplicate keys."""

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        assert len(dict(pairs)) == len(pairs)
        return dict(pairs)

    value: dict[str, Any] = json.loads(text, parse_constant=refuse, object_pairs_hook=unique)
    return value


def shape(value: Any) -> Any:
    """The keys of nested objects; of a list, those of its first item."""
    if isinstance(value, dict):
        return {key: shape(item) for key, item in value.items()}
    if isinstance(value, list):
        return [shape(value[0])] if value else []
    return None


STATISTICS = dict.fromkeys(
    (
        "count",
        "mean",
        "mean_square",
        "rms",
        "abs_max",
        "zero_count",
        "nonfinite_count",
        "underflow",
        "half_width",
    )
) | {"underflow": dict.fromkeys(("float16", "bfloat16", "float32"))}
LINK = dict.fromkeys(("place", "path", "ops", "log10_norm_in", "log10_norm_out", "log10_gain", "source"))


def test_the_shape_is_frozen() -> None:
    """A change here needs a new SCHEMA_VERSION, unless it only adds."""
    report = strict(render_json(samples.vanishing()))
    flow = {
        "source": None,
        "metadata": dict.fromkeys(("model", "loss", "training", "device", "torch")),
        "notes": [],
        "layers": [
            dict.fromkeys(("place", "path", "kind"))
            | {"activation": STATISTICS, "activation_gradient": STATISTICS}
        ],
        "parameters": [
            dict.fromkeys(("name", "status", "path", "kind"))
            | {"parameter": STATISTICS, "parameter_gradient": STATISTICS}
        ],
        "gain": {"total": None, "modules": [{**LINK, "ops": [None]}]},
        "time_steps": [],
    }
    assert SCHEMA_VERSION == 1
    assert shape(report) == {
        "schema_version": None,
        "evenflow": None,
        "title": None,
        "healthy": None,
        "findings": [
            dict.fromkeys(("code", "symptom", "severity", "site", "message", "source", "passed"))
            | {
                "causes": [dict.fromkeys(("name", "confidence", "evidence", "confirmed", "trial"))],
                "evidence": [dict.fromkeys(("text", "value", "threshold"))],
                "remedies": [None],
            }
        ],
        "skipped": [dict.fromkeys(("code", "reason"))],
        "suppressed": [],
        "flow": flow,
        "predicted": {
            **flow,
            "parameters": [{**flow["parameters"][0], "parameter_gradient": None}],  # type: ignore[index, dict-item]
        },
    }


def test_the_numbers_are_those_of_the_flow() -> None:
    content = samples.vanishing()
    report = strict(render_json(content))
    rms = {entry["place"]: entry["activation_gradient"]["rms"] for entry in report["flow"]["layers"]}
    assert rms == content.flow.rms("activation_gradient")
    rms = {entry["name"]: entry["parameter_gradient"]["rms"] for entry in report["flow"]["parameters"]}
    assert rms == content.flow.rms("parameter_gradient")
    gain = report["flow"]["gain"]
    assert math.fsum(link["log10_gain"] for link in gain["modules"]) == pytest.approx(gain["total"])
    assert gain["total"] == pytest.approx(content.flow.budget().total)
    assert report["healthy"] is False
    assert report["findings"][0]["causes"][0]["name"] == "saturating_activation"
    (first, *_) = report["flow"]["layers"]
    stats = content.flow.stats("activation_gradient")["0"]
    assert first["activation_gradient"]["underflow"]["float16"] == stats.underflow_fraction("float16") == 1.0
    assert report["predicted"]["layers"][0]["activation_gradient"]["half_width"] == 0.2


def test_numbers_that_json_lacks_are_text() -> None:
    report = strict(render_json(ReportContent(samples.non_finite(), Diagnosis())))
    assert report["flow"]["metadata"]["loss"] == "NaN"
    gains = [link["log10_gain"] for link in report["flow"]["gain"]["modules"]]
    assert "-Infinity" in gains
    assert "Infinity" in gains


def test_what_nothing_reached_is_null_with_a_reason() -> None:
    report = strict(render_json(samples.healthy()))
    layers = {entry["place"]: entry for entry in report["flow"]["layers"]}
    assert layers["embed"]["activation_gradient"] is None
    assert layers["embed"]["activation"]["count"] == 4096
    parameters = {entry["name"]: entry for entry in report["flow"]["parameters"]}
    assert (parameters["embed.weight"]["status"], parameters["spare.weight"]["status"]) == (
        "frozen",
        "unused",
    )
    assert parameters["embed.weight"]["parameter_gradient"] is None
    assert report["healthy"] is True


def test_time_steps() -> None:
    report = strict(render_json(ReportContent(samples.lstm(7), Diagnosis())))
    states = {entry["state"]: entry["steps"] for entry in report["flow"]["time_steps"]}
    assert list(states) == ["lstm:hidden_l0", "lstm:cell_l0"]
    assert [step["time"] for step in states["lstm:cell_l0"]] == list(range(7))


def test_names_come_through_unchanged_in_ascii() -> None:
    text = render_json(samples.hostile())
    assert text.isascii()
    report = strict(text)
    assert report["title"] == " ".join(samples.HOSTILE)
    assert [entry["place"] for entry in report["flow"]["layers"]] == list(samples.HOSTILE[:-1])
    assert [found["site"] for found in report["findings"]] == list(samples.HOSTILE)


def test_metadata_that_is_no_json_becomes_text() -> None:
    content = samples.healthy()
    content.flow.metadata["shape"] = (1, 2)
    content.flow.metadata["kind"] = complex(1, 2)
    report = strict(render_json(content))
    assert report["flow"]["metadata"]["shape"] == [1, 2]
    assert report["flow"]["metadata"]["kind"] == "(1+2j)"
