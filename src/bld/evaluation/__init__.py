"""Measuring editors: what the paper reports of its own, for any model."""
