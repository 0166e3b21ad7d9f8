"""Many configurations on one cache: what is tried, trained side by side, kept and ranked."""
