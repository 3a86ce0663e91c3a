"""The edits, one family a file."""
