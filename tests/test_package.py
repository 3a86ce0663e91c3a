"""``import evenflow``: cheap, and its verbs stay verbs."""

from __future__ import annotations

import subprocess
import sys

import pytest

import evenflow as ef


def _run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_importing_costs_nothing() -> None:
    heavy = "{'torch', 'numpy', 'scipy', 'pyarrow', 'rich', 'click', 'jinja2'}"
    assert _run(f"import sys, evenflow; print({heavy} & set(sys.modules))") == "set()"


@pytest.mark.parametrize("name", [name for name in ef.__all__ if name != "__version__"])
def test_every_name_of_the_face_is_there(name: str) -> None:
    assert name in dir(ef)
    assert callable(getattr(ef, name))


def test_a_verb_stays_a_verb_when_the_package_of_its_name_is_imported() -> None:
    code = (
        "import evenflow as ef\n"
        "import evenflow.measure, evenflow.check, evenflow.diagnose\n"
        "from evenflow.measure import measure\n"
        "for _ in range(2): print(ef.measure is measure, callable(ef.check), callable(ef.diagnose))"
    )
    assert _run(code) == "True True True\nTrue True True"


def test_a_name_that_is_not_there_names_those_that_are() -> None:
    with pytest.raises(
        AttributeError, match=r"^module 'evenflow' has no attribute 'mesure'; it has Described, Flow, "
    ):
        ef.mesure  # noqa: B018
