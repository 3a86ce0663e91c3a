"""explain: one page for every code, name, symptom and cause, found by the words that people use."""

from __future__ import annotations

import subprocess
import sys

import pytest

from evenflow.diagnose import CauseName, Symptom, explain, rules
from evenflow.diagnose.glossary import CAUSES, SYMPTOMS
from evenflow.diagnose.laboratory import picture_of
from evenflow.errors import EvenflowError


@pytest.mark.parametrize("rule", rules(), ids=lambda rule: rule.code)
def test_the_page_of_a_rule(rule: object) -> None:
    page = explain(rule.code)  # type: ignore[attr-defined]
    assert page.startswith(f"# {rule.code} {rule.name}\n\n{rule.summary}\n")  # type: ignore[attr-defined]
    headings = [line for line in page.splitlines() if line.startswith("## ")]
    assert headings == [
        "## What it is",
        "## Why it happens",
        "## Mathematics",
        "## How it is detected",
        "## What to do",
        *(["## In the lab"] if picture_of(rule.name) else []),  # type: ignore[attr-defined]
        "## References",
    ]
    for threshold in rule.thresholds:  # type: ignore[attr-defined]
        assert f"- **{threshold.value:g}** {threshold.meaning}. *Source:* {threshold.source}." in page
    assert page == explain(rule.name.upper())  # type: ignore[attr-defined]


@pytest.mark.parametrize("cause", CauseName)
def test_every_cause_has_a_page(cause: CauseName) -> None:
    page = explain(cause)
    if cause in {rule.name for rule in rules()} or cause is CauseName.DEAD_RELU:  # the page of dead_units
        assert page.startswith("# EF")
    else:
        assert page.startswith(f"# {cause}\n\n{CAUSES[cause].text}\n")
        for rule in rules():
            assert (f"- {rule.code} " in page) is (cause in rule.causes)


@pytest.mark.parametrize("symptom", Symptom)
def test_every_symptom_has_a_page(symptom: Symptom) -> None:
    assert explain(symptom).startswith(("# EF", f"# {symptom}\n\n{SYMPTOMS[symptom][0]}"))


@pytest.mark.parametrize(
    ("word", "title"),
    [
        ("vanishing", "EF101 vanishing_gradient"),
        ("  Vanishing  Gradient ", "EF101 vanishing_gradient"),
        ("vanishing-gradient", "EF101 vanishing_gradient"),
        ("exploding", "EF102 exploding_gradient"),
        ("dead relu", "EF202 dead_units"),
        ("dying relu", "EF202 dead_units"),
        ("saturated", "EF201 saturation"),
        ("nan", "EF701 non_finite"),
        ("NaNs", "EF701 non_finite"),
        ("inf", "EF701 non_finite"),
        ("ef502", "EF502 wrong_loss_or_output"),
        ("double softmax", "EF502 wrong_loss_or_output"),
        ("detach", "EF501 frozen_or_detached"),
        ("requires_grad", "EF501 frozen_or_detached"),
        ("dead_relu", "EF202 dead_units"),
        ("sigmoid", "saturating_activation"),
        ("lstm", "long_recurrence"),
        ("learning rate too high", "learning_rate_too_high"),
        ("loss stuck", "EF601 loss_not_decreasing"),
        ("adam eps", "EF607 optimizer_epsilon_dominates"),
    ],
)
def test_everyday_words(word: str, title: str) -> None:
    assert explain(word).startswith(f"# {title}\n")


def test_every_word_of_the_glossary_leads_where_it_says() -> None:
    owners: dict[str, set[str]] = {}
    for name, words in [
        *((str(symptom), words) for symptom, (_, words) in SYMPTOMS.items()),
        *((str(cause), entry.words) for cause, entry in CAUSES.items()),
    ]:
        for word in words:
            owners.setdefault(word, set()).add(name)
    assert {word: names for word, names in owners.items() if len(names) > 1} == {}


@pytest.mark.parametrize(
    ("word", "text"),
    [
        ("vanshing", "There is no page on 'vanshing'. Near it are: vanishing, vanish, squashing. "),
        (
            "gradient",
            "Near it are: clipping_always_active, exploding_gradient, gradient_outweighs_weights, "
            "uneven_gradient, vanishing_gradient. ",
        ),
        ("xyzzy", "There is no page on 'xyzzy'. `evenflow explain` without a word lists all pages."),
    ],
)
def test_an_unknown_word_suggests_near_ones(word: str, text: str) -> None:
    with pytest.raises(EvenflowError) as error:
        explain(word)
    assert text in str(error.value)


def test_no_word_lists_all_pages() -> None:
    page = explain("")
    for name in [*(rule.code for rule in rules()), *Symptom, *CauseName]:
        assert f"- {name}" in page


def test_explain_needs_neither_torch_nor_pandas() -> None:
    code = (
        "import sys; from evenflow.diagnose import explain; explain('nan'); "
        "print(sorted({'torch', 'pandas', 'polars', 'scipy', 'transformers'} & set(sys.modules)))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
