"""Rules: found by listing, told apart by code, chosen by code, prefix or name, and never the end of a run."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import final

import pytest

from evenflow.diagnose import CauseName, Finding, Page, Rule, Symptom, diagnose, rules
from evenflow.diagnose.judge import apply
from evenflow.diagnose.registry import register, select_rules
from evenflow.diagnose.rule import CannotJudgeError, RunRule
from evenflow.errors import EvenflowError
from evenflow.flow import Flow
from tests.diagnose.chains import Op, chain, mlp

PAGE = Page("what", "why", "mathematics", "detection", "remedies", ("a work",))


@final
class Silent(Rule):
    code = "EF999"
    name = "silent"
    symptom = Symptom.OSCILLATING
    summary = "Never says anything."
    causes = (CauseName.UNKNOWN,)
    thresholds = ()
    page = PAGE

    def check(self, flow: Flow) -> Iterator[Finding]:
        yield from ()


KNOWN = {
    "EF101": "vanishing_gradient",
    "EF102": "exploding_gradient",
    "EF103": "vanishing_through_time",
    "EF104": "exploding_through_time",
    "EF105": "uneven_gradient",
    "EF106": "gradient_outweighs_weights",
    "EF201": "saturation",
    "EF202": "dead_units",
    "EF203": "rank_collapse",
    "EF204": "token_collapse",
    "EF205": "attention_entropy",
    "EF301": "init_too_small",
    "EF302": "init_too_large",
    "EF303": "symmetric_units",
    "EF401": "depth_without_skip",
    "EF402": "normalization_explosion",
    "EF403": "post_ln_depth",
    "EF404": "residual_growth",
    "EF405": "missing_normalization",
    "EF501": "frozen_or_detached",
    "EF502": "wrong_loss_or_output",
    "EF503": "unscaled_input",
    "EF504": "unscaled_target",
    "EF505": "bounded_output",
    "EF506": "broadcast_loss",
    "EF507": "ignored_samples",
    "EF601": "loss_not_decreasing",
    "EF602": "oscillating",
    "EF603": "divergence",
    "EF604": "loss_spikes",
    "EF605": "learning_rate_too_low",
    "EF606": "clipping_always_active",
    "EF607": "optimizer_epsilon_dominates",
    "EF608": "weight_decay_dominates",
    "EF609": "never_updated",
    "EF610": "unscaled_data",
    "EF701": "non_finite",
    "EF702": "non_finite_training",
    "EF703": "precision_overflow",
    "EF704": "precision_underflow",
    "EF705": "loss_scale_thrashing",
    "EF706": "update_lost_to_rounding",
    "EF801": "discriminator_saturation",
    "EF802": "generator_starvation",
}


def _beginning(*beginnings: str) -> list[str]:
    return [code for code in KNOWN if code.startswith(beginnings)]


def test_the_rules_there_are() -> None:
    assert {rule.code: rule.name for rule in rules()} == KNOWN
    assert [rule.code for rule in rules()] == sorted(KNOWN)


@pytest.mark.parametrize("rule", rules(), ids=lambda rule: rule.code)
def test_every_rule_is_final_has_a_file_of_its_name_and_a_whole_page(rule: Rule) -> None:
    assert type(rule).__bases__ in ((Rule,), (RunRule,))
    assert getattr(type(rule), "__final__", False)
    assert type(rule).__module__ == f"evenflow.diagnose.rules.{rule.name}"
    assert rule.summary.endswith(".")
    assert "\n" not in rule.summary
    for section in ("what", "why", "mathematics", "detection", "remedies"):
        assert len(getattr(rule.page, section)) > 80, section
    assert rule.page.references


@pytest.mark.parametrize("rule", rules(), ids=lambda rule: rule.code)
def test_every_number_that_a_rule_compares_with_is_a_threshold_with_a_source(rule: Rule) -> None:
    module = inspect.getmodule(type(rule))
    named = {name for name, value in vars(module).items() if type(value).__name__ == "Threshold"}
    listed = {id(threshold) for threshold in rule.thresholds}
    assert all(id(getattr(module, name)) in listed for name in named)
    assert all(threshold.source and threshold.meaning for threshold in rule.thresholds)
    code = inspect.getsource(type(rule).check_run if isinstance(rule, RunRule) else type(rule).check)
    assert not any(digit in code for digit in "23456789"), "a bare number in check"


def test_a_code_or_a_name_taken_twice_raises() -> None:
    @final
    class Twin(Rule):
        code = "EF999"
        name = "twin"
        symptom = Symptom.OSCILLATING
        summary = "The same code."
        causes = ()
        thresholds = ()
        page = PAGE

        def check(self, flow: Flow) -> Iterator[Finding]:
            yield from ()

    with pytest.raises(TypeError, match=r"^EF999 is taken twice: by .*Silent and by .*Twin\.$"):
        register([Silent(), Twin()])
    Twin.code, Twin.name = "EF998", "silent"
    with pytest.raises(TypeError, match="silent is taken twice"):
        register([Silent(), Twin()])
    Twin.code = "EF12"
    with pytest.raises(TypeError, match="has the code 'EF12'; expected EF and three digits"):
        register([Twin()])


@pytest.mark.parametrize(
    ("select", "ignore", "codes"),
    [
        ((), (), list(KNOWN)),
        (("EF1",), (), _beginning("EF1")),
        (("ef2", "non_finite"), (), [*_beginning("EF2"), "EF701"]),
        ("EF701", (), ["EF701"]),
        (("EF",), ("EF5", "saturation"), [c for c in KNOWN if c[2] != "5" and c != "EF201"]),
        (("EF101",), ("EF1",), []),
    ],
)
def test_selecting(select: tuple[str, ...], ignore: tuple[str, ...], codes: list[str]) -> None:
    assert [rule.code for rule in select_rules(select, ignore)] == codes


@pytest.mark.parametrize("word", ["EF9", "vanish", ""])
def test_an_unknown_rule_is_the_users_mistake(word: str) -> None:
    with pytest.raises(EvenflowError) as error:
        diagnose(chain([Op("addmm")]), ignore=(word,))
    listed = ", ".join(f"{code} ({name})" for code, name in KNOWN.items())
    assert str(error.value) == (
        f"ignore: no rule is called {word!r}. "
        f"Give a code, the beginning of one (EF1) or a name. Rules: {listed}."
    )


def test_a_rule_that_cannot_judge_or_breaks_is_skipped_and_costs_no_other_finding() -> None:
    @final
    class Blind(Rule):
        code, name, symptom, summary = "EF901", "blind", Symptom.OSCILLATING, "Sees nothing."
        causes, thresholds, page = (), (), PAGE

        def check(self, flow: Flow) -> Iterator[Finding]:
            raise CannotJudgeError("the Flow has no time steps")

    @final
    class Broken(Rule):
        code, name, symptom, summary = "EF902", "broken", Symptom.OSCILLATING, "Falls over."
        causes, thresholds, page = (), (), PAGE

        def check(self, flow: Flow) -> Iterator[Finding]:
            yield from ()
            raise ZeroDivisionError("division by zero")

    flow = chain(mlp(20, "sigmoid", weights=0.58, slope=0.24))
    diagnosis = apply([Blind(), Broken(), *select_rules(("EF1", "EF2"))], flow)
    assert [(skip.code, skip.reason) for skip in diagnosis.skipped[:2]] == [
        ("EF901", "the Flow has no time steps"),
        ("EF902", "the rule failed (ZeroDivisionError: division by zero); please report it"),
    ]
    assert [finding.code for finding in diagnosis.findings] == ["EF101"]


def test_an_empty_flow_is_skipped_by_all_rules_that_need_gradients() -> None:
    diagnosis = diagnose(Flow([], "measured"))
    assert diagnosis.findings == ()
    steps = {rule.code for rule in rules() if not isinstance(rule, RunRule)}
    assert {skip.code for skip in diagnosis.skipped} == steps


def test_findings_come_worst_first_and_then_in_forward_order() -> None:
    @final
    class Three(Rule):
        code, name, symptom, summary = "EF903", "three", Symptom.OSCILLATING, "Says three things."
        causes, thresholds, page = (), (), PAGE

        def check(self, flow: Flow) -> Iterator[Finding]:
            for severity, place in (("note", "0"), ("error", "2"), ("warning", "4"), ("error", "0")):
                yield Finding(self.code, self.symptom, severity, place, "")  # type: ignore[arg-type]

    found = apply([Three()], chain(mlp(3, "relu", weights=1.4, slope=0.7))).findings
    assert [(f.severity, f.site) for f in found] == [
        ("error", "0"),
        ("error", "2"),
        ("warning", "4"),
        ("note", "0"),
    ]
