"""Responses judged by a stronger model behind an API."""
