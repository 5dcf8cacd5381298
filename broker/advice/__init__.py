"""What to ask for next time, from what jobs have used."""
