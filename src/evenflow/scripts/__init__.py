"""Training scripts as they are: run like ``python`` does, what they train found and, on demand, patched.

Nothing here imports PyTorch before the script does, for a script may set variables
that PyTorch reads while it is imported.
"""
