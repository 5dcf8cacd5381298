"""Decisions about runs that ask for much: who may run what, decided by somebody else, kept for ever.

That a run waits, and is let go, is a matter of its holds (`broker.runs.holding`); here is who decided what,
and what there was to be seen before it was decided.
"""
