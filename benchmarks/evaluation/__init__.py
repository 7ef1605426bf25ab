"""Neighbours and metrics: how long they take, and whether another library finds the same."""
