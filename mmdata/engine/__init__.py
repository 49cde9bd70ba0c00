"""Runs a Plan: which process does what, when, and what is said about it."""
