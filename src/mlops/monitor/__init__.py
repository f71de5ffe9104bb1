"""Monitor: what was asked and answered, kept and counted."""
