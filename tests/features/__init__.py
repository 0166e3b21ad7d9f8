"""Tests of pipeline/features/."""
