"""Distillation: schedules, objectives, teacher signals, and the training tasks that combine them."""
