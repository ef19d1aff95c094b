"""Retrieval of passages by the likelihood of a question."""
