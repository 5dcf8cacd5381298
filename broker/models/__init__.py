"""Result models: every component that leaves a `best_model.*` gives a version of its pipeline's model."""
