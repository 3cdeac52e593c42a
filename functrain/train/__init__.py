"""Training: state, step, loop, evaluation, checkpoints, stopping. It knows the signatures of a task, and no task."""
