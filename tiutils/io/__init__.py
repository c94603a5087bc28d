"""Files in and out: embeddings, checkpoints, models' folders, a run's folder, the Hub."""
