"""What only the notebooks need: controls, live views, figures to explore, checks for exercises."""
