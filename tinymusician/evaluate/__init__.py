"""Evaluation: distances between sets of clips, scores of clips against prompts, teacher agreement, guards and cost."""
