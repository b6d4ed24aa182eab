"""Readers of published data sets and of the user's images; each yields blocks of decoded images."""
