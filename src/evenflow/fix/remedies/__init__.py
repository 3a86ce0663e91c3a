"""Remedies, one file each; :func:`evenflow.fix.remedy.remedies` finds them by listing this folder."""
