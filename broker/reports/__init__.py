"""Reports over what jobs used: what figures mean, where lines come from, how they are shown."""
