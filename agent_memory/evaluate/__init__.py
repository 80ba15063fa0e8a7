"""Measuring how well memory answers: tasks, scores and plots."""
