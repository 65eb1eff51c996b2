"""The training loop, what it needs of a task, the engines that turn a loss into a step, and checkpoints."""
