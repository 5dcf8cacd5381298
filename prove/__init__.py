"""What the product promises, measured on a real cluster and written down: `python -m prove`."""
