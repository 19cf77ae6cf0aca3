"""Exports: written in formats that stock tools load, and loaded by them again before they count."""
