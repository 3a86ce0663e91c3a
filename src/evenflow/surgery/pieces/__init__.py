"""Modules and functions that edits put into programs.

Each file needs PyTorch and the standard library only, because ``patch.code(model)``
prints its definitions beside the statements that use them.
"""
