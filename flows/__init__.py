"""Orchestration: the stages, their order, and what a finished stage leaves behind."""
