"""Each figure that the pages state, and the command that makes it."""
