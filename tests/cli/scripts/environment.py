"""What a script can see of how it was started; no PyTorch."""

import os
import pickle
import sys


class Mine:
    pass


print(__name__, __file__, sys.argv, sys.path[0], __spec__ is None, "torch" in sys.modules)
print(pickle.loads(pickle.dumps(Mine())).__class__ is Mine, sys.modules["__main__"].Mine is Mine)
print(__package__, __doc__, type(__loader__).__name__, os.getcwd())
sys.exit(7)
