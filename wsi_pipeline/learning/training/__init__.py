"""The parts of a training: options, batches, optimiser, what is written, how processes share the work."""
