"""Evaluation: zero-shot classification and retrieval, exact on remainders; runners on top."""
