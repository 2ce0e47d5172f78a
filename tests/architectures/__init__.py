"""Tokenizers, templates and models of the shapes that people train, small enough for unit tests."""
