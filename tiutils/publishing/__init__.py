"""A learned word on the Hub, with its card."""
