"""The rules, one file each; :mod:`evenflow.diagnose.registry` finds them by listing this folder."""
