"""``python -m evenflow.scripts [FOLDER]``: one trial, or a nursery of them."""

import sys
from pathlib import Path

from evenflow.scripts import nursery, trial

if len(sys.argv) > 1:
    trial.main(Path(sys.argv[1]))
else:
    nursery.serve()
