"""Inspection of predictions: what a model looked at, collected by hooks, and drawn."""
