"""Calibration methods, one a module: `draw(job, inputs, progress) -> Samples`."""
