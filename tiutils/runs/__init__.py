"""A whole run: its inputs, its session, what watches it, when it stops, what fits into memory."""
