"""fix for a training script that knows nothing of evenflow.

The script is run once under watch and judged. In that process, where its classes
are at home, its first batch becomes a small stand-in program, on which remedies make
patches and screen them. Each trial then runs the script anew, in a process of its
own, for some steps, with a patch put on as its model meets its optimizer.
"""

from evenflow.fix.script.mend import STEPS, fix_script
from evenflow.fix.script.process import Script, ScriptError

__all__ = ["STEPS", "Script", "ScriptError", "fix_script"]
