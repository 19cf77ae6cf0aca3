"""What does not rest on trust: signatures, seals, the ledger of the registry, provenance."""
