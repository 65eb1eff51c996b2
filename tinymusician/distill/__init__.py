"""Distillation: divergences, schedules, the objective, teacher signals and the task that ties them together."""
