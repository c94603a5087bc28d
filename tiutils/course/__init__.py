"""What only a notebook needs: widgets, pictures to explore, exercises with their checks."""
