"""Jinja templates of the generated cards."""
