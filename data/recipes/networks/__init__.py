"""The networks of the bundled model: their sizes, their training, and the folder they are exported to."""
