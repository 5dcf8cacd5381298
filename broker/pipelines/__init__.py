"""Stored pipeline specs and their immutable versions (BL-04, BL-05), and uploaded code (GC-11).

A pipeline belongs to a tenant and an owner: everyone of the tenant reads it, its owner (or an admin) adds
versions and removes it. A version never changes; the same content twice is the same version.
"""
