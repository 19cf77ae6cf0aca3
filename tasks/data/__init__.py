"""Rows and text: reading any file format, rendering, prompt templates, batches by token count."""
