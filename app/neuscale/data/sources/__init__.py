"""Readers of data sets as their makers publish them; each gives blocks of decoded images."""
