"""Learners, one for each framework."""
