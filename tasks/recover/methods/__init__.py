"""Recovery methods, one a module: `train(job, inputs, batches, progress) -> Recovered`."""
