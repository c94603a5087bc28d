"""How good a learned word is: measures, their comparison, a report, overfitting."""
