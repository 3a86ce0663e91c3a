"""Programs with a known diagnosis, and the scale on which tools are weighed."""
