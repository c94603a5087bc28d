"""What is shown: grids of pictures, curves, diagrams, each with a text for those who cannot see it."""
