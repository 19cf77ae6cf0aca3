"""Choosing the rows that recovery trains on."""
