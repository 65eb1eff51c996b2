"""The training loop, its interface to tasks, the engines that turn a loss into a step, and checkpoints."""
