"""One experiment a file; :mod:`evenflow.lab.registry` finds them."""
