"""A federation across machines: a folder for each of them, checks to run there, and the commands that start it."""
