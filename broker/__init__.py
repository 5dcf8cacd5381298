"""A broker between people who describe pipelines of containers and the Slurm cluster that runs them."""

__version__ = "0.1.0"
