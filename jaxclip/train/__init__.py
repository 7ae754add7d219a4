"""Training: state, one step function, the loop, checkpoints, metrics, spike watch, report."""
