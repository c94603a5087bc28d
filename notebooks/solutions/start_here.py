"""Solutions to the exercises of 00_start_here.ipynb."""


def learned_numbers(models, placeholder):
    """Exercise 1: one row for each vector of the word, each as wide as the text encoder."""
    return placeholder.num_vectors * models.hidden_size


def best_step(losses):
    """Exercise 2: the step with the lowest loss; of equally good ones the earliest."""
    return min(sorted(losses), key=losses.get)
