"""Each figure that the README states, and the command that makes it."""
