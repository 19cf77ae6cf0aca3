"""Selection methods, one a module: `choose(job, inputs, pool, progress) -> Choice`."""
