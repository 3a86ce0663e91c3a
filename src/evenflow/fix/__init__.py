"""fix: from findings to a change that was tried and works.

    outcome = ef.fix(program)
    for confirmed in outcome.patches:        # best first
        print(confirmed.patch.describe(), confirmed.effect)
    outcome.patches[0].patch.save("patch.json")

Findings suggest remedies, one file each in ``remedies/``, each of which makes
patches for the program at hand. What does not fit, or leaves the flow no better
on one batch, is refuted before anything is trained. The rest races: short
trainings with the program's own seeds and batches, the hopeless stopped early.
The best are compared with the unpatched program seed by seed, and only those
whose effect has an interval above zero are offered, the smallest first among
those that are as good.
"""

from evenflow.fix.outcome import Outcome, Refuted, Tried
from evenflow.fix.search import fix

__all__ = ["Outcome", "Refuted", "Tried", "fix"]
