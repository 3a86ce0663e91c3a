"""What holds for all tests."""

from __future__ import annotations

from hypothesis import settings

# A slow or busy machine is no fault of the code.
settings.register_profile("evenflow", deadline=None)
settings.load_profile("evenflow")
