"""Reference implementation of training, written by hand; it imports nothing from neuscale."""
