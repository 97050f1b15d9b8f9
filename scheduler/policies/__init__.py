"""Fairness policies: plain values in, priorities out."""
