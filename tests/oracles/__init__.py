"""Independent truths: nothing here may call the code under test."""
