"""Batch: thousands of edits from a manifest, by several workers, here or on a cluster."""
